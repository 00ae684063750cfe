/* In place of the function of the C++ library, which is then not linked. The names that it would spell out stay as they are. */
#include <stddef.h>

char *__cxa_demangle(const char *name, char *into, size_t *length, int *status) {
    (void)name, (void)into, (void)length;
    if (status) *status = -2; /* "not a valid name" */
    return NULL;
}
