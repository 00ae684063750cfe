/* Reading a file as a whole. */
#ifndef FGGP_FILE_BYTES_H
#define FGGP_FILE_BYTES_H

#include <stdint.h>

#include <vector>

namespace fggp {

/* All bytes of a file, whose path is in UTF-8 on Windows. Throws Refused: it cannot be read. */
std::vector<uint8_t> read_bytes(const char *path);

} // namespace fggp
#endif
