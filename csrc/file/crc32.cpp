#include "file/crc32.h"

namespace fggp {
namespace {

/* Four bytes are taken at a time, each with a table of its own. */
struct Tables {
    uint32_t of[4][256];
    constexpr Tables() : of() {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte;
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
            of[0][byte] = crc;
        }
        for (int table = 1; table < 4; table++)
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
    for (; size >= 4; size -= 4, bytes += 4) {
        crc ^= bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
        crc = of[3][crc & 255] ^ of[2][crc >> 8 & 255] ^ of[1][crc >> 16 & 255] ^ of[0][crc >> 24];
    }
    for (; size; size--, bytes++) crc = crc >> 8 ^ of[0][(crc ^ *bytes) & 255];
    return ~crc;
}

} // namespace fggp
