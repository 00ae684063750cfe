#include "file/crc32.h"

#include "file/frames.h"

namespace fggp {
namespace {

/* Eight bytes are taken at a time, each with a table of its own. */
struct Tables {
    uint32_t of[8][256];
    constexpr Tables() : of() {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte;
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
            of[0][byte] = crc;
        }
        for (int table = 1; table < 8; table++)
            for (int byte = 0; byte < 256; byte++) {
                uint32_t before = of[table - 1][byte];
                of[table][byte] = before >> 8 ^ of[0][before & 255];
            }
    }
};
constexpr Tables TABLES;

} // namespace

uint32_t crc32(const uint8_t *bytes, size_t size) {
    auto &of = TABLES.of;
    uint32_t crc = ~0u;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t low = crc ^ little_endian_32(bytes), high = little_endian_32(bytes + 4);
        crc = of[7][low & 255] ^ of[6][low >> 8 & 255] ^ of[5][low >> 16 & 255] ^ of[4][low >> 24] ^
              of[3][high & 255] ^ of[2][high >> 8 & 255] ^ of[1][high >> 16 & 255] ^ of[0][high >> 24];
    }
    for (; size; size--, bytes++) crc = crc >> 8 ^ of[0][(crc ^ *bytes) & 255];
    return ~crc;
}

} // namespace fggp
