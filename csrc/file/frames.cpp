#include "file/frames.h"

#include <new>

#include "network/types.h"
#include "third_party/zstd/decode.h"

namespace fggp {

/* A block of a frame holds at most 128 KiB, and takes at least 4 bytes if it holds anything. */
constexpr int64_t BLOCK = 128 << 10, BLOCK_BYTES = 4;

void damaged(const std::string &why) { throw Refused("the file is damaged: " + why); }

std::vector<uint8_t> decompress(Span frame, int64_t smallest, int64_t largest, const std::string &what) {
    int64_t size = fggp_zstd_content_size(frame.data, frame.size);
    if (size < 0) damaged(what + " cannot be decompressed");
    if (size < smallest || size > largest)
        damaged(what + " has " + std::to_string(size) + " bytes, and must have " + std::to_string(largest) + (smallest < largest ? " at most" : ""));
    if (size / BLOCK > (int64_t)(frame.size / BLOCK_BYTES)) damaged(what + " claims more bytes than it can hold");
    if ((uint64_t)size > PTRDIFF_MAX) throw std::bad_alloc();
    std::vector<uint8_t> content(size);
    int status = fggp_zstd_decode(frame.data, frame.size, content.data(), content.size());
    if (status == FGGP_ZSTD_OUT_OF_MEMORY) throw std::bad_alloc();
    if (status != FGGP_ZSTD_OK) damaged(what + " cannot be decompressed");
    return content;
}

} // namespace fggp
