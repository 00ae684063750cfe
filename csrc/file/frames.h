/* Bytes in zstd frames (RFC 8878), which are not trusted. */
#ifndef FGGP_FILE_FRAMES_H
#define FGGP_FILE_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

namespace fggp {

struct Span {
    const uint8_t *data;
    size_t size;
};

/* A number in a file, whatever the byte order of this machine is. */
inline uint32_t little_endian_32(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* An error in a file's bytes: "the file is damaged: …". */
[[noreturn]] void damaged(const std::string &why);

/* The content of bytes that are one frame. Memory is taken only for what so many bytes can hold. Throws Refused: they
 * are no frame, or their content is not of a size from `smallest` to `largest`; `what` says what it is. */
std::vector<uint8_t> decompress(Span frame, int64_t smallest, int64_t largest, const std::string &what);

} // namespace fggp
#endif
