/* The checksum of a file: zlib's CRC-32. */
#ifndef FGGP_FILE_CRC32_H
#define FGGP_FILE_CRC32_H

#include <stddef.h>
#include <stdint.h>

namespace fggp {

uint32_t crc32(const uint8_t *bytes, size_t size);

} // namespace fggp
#endif
