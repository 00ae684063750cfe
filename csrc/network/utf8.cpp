#include "network/utf8.h"

#include <stdint.h>

namespace fggp {

/* The bytes of the character at the beginning of a text; 0: there is none. */
static size_t character(const uint8_t *at, size_t left) {
    size_t length = at[0] < 0x80 ? 1 : at[0] < 0xC2 ? 0 : at[0] < 0xE0 ? 2 : at[0] < 0xF0 ? 3 : at[0] < 0xF5 ? 4 : 0;
    if (length > left) return 0;
    for (size_t i = 1; i < length; i++)
        if ((at[i] & 0xC0) != 0x80) return 0;
    bool too_long = (at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xF0 && at[1] < 0x90);
    bool half = at[0] == 0xED && at[1] > 0x9F; /* of a surrogate pair */
    bool too_large = at[0] == 0xF4 && at[1] > 0x8F;
    return too_long || half || too_large ? 0 : length;
}

bool is_utf8(const char *text, size_t length) {
    for (size_t i = 0; i < length;) {
        size_t own = character((const uint8_t *)text + i, length - i);
        if (!own) return false;
        i += own;
    }
    return true;
}

std::string as_utf8(const std::string &text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        size_t own = character((const uint8_t *)text.data() + i, text.size() - i);
        if (own) out.append(text, i, own), i += own;
        else out += '?', i++;
    }
    return out;
}

} // namespace fggp
