/* UTF-8: texts from files and callers are checked, so that what the library says is text. */
#ifndef FGGP_NETWORK_UTF8_H
#define FGGP_NETWORK_UTF8_H

#include <stddef.h>

#include <string>

namespace fggp {

bool is_utf8(const char *text, size_t length);
/* The text with a question mark for each byte that belongs to no character, such as those of one that was cut. */
std::string as_utf8(const std::string &text);

} // namespace fggp
#endif
