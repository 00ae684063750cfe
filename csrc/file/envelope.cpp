#include "file/envelope.h"

#include "file/crc32.h"
#include "network/json.h"
#include "network/types.h"

namespace fggp {

using json::Value;

namespace {

const char *const VERSION = "2";
constexpr size_t LENGTH_BYTES = 8, CHECKSUM_BYTES = 4;
constexpr uint64_t HEADER_MAX = 1 << 20; /* the caller's metadata take half of it at most */

[[noreturn]] void foreign(const std::string &why) { throw Refused("the file is no network file of fggp, or damaged: " + why); }

bool is_integer(const Value &value, int64_t expected) { return value.kind == Value::INTEGER && value.integer == expected; }

/* The length of the header, which the file begins with. */
uint64_t header_length(Span file) {
    if (file.size < LENGTH_BYTES) throw Refused("the file is cut short: it has " + std::to_string(file.size) + " bytes");
    uint64_t length = 0, reversed = 0;
    for (size_t i = 0; i < LENGTH_BYTES; i++) {
        length |= (uint64_t)file.data[i] << 8 * i;
        reversed = reversed << 8 | file.data[i];
    }
    auto possible = [](uint64_t n) { return n > 0 && n <= HEADER_MAX; };
    if (!possible(length) && possible(reversed)) throw Refused("the file's numbers are in big-endian byte order; fggp writes little-endian files");
    if (!possible(length)) foreign("it cannot have a header of " + std::to_string(length) + " bytes");
    if (length > file.size - LENGTH_BYTES)
        throw Refused("the file is cut short: it has " + std::to_string(file.size) + " bytes, and a header of " + std::to_string(length));
    return length;
}

Metadata metadata_of(const Value &header) {
    const Value *entries = header.find("__metadata__");
    const Value *version = entries ? entries->find("fggp") : nullptr;
    if (!version || version->kind != Value::TEXT) foreign("its header does not name fggp");
    if (version->text != VERSION)
        throw Refused("the file has version \"" + version->text.substr(0, 20) + "\"; this version of fggp reads networks from files of version \"" + VERSION + "\"");
    Metadata metadata;
    for (auto &entry : entries->object) {
        if (entry.second.kind != Value::TEXT) damaged("its metadata has \"" + entry.first.substr(0, 40) + "\", which is no text");
        if (&entry.second != version) metadata.emplace_back(entry.first, entry.second.text);
    }
    return metadata;
}

} // namespace

Envelope open_envelope(Span file) {
    size_t length = header_length(file), start = LENGTH_BYTES + length;
    Value header = json::parse((const char *)file.data + LENGTH_BYTES, length, "the file's header");
    Envelope envelope;
    envelope.metadata = metadata_of(header);

    const Value *piece = header.find("tensors");
    if (!piece || header.object.size() != 2 || piece->object.size() != 3) damaged("its header has other entries than \"__metadata__\" and \"tensors\"");
    const Value *type = piece->find("dtype"), *shape = piece->find("shape"), *offsets = piece->find("data_offsets");
    if (!type || type->text != "U8" || !shape || shape->list.size() != 1 || !offsets || offsets->list.size() != 2 ||
        shape->list[0].kind != Value::INTEGER || !is_integer(offsets->list[0], 0) || !is_integer(offsets->list[1], shape->list[0].integer))
        damaged("its header does not say where its data are");
    int64_t size = shape->list[0].integer, given = (int64_t)(file.size - start);
    if (given < size)
        throw Refused("the file is cut short: it has " + std::to_string(given) + " bytes of data, and its header says " + std::to_string(size));
    if (given > size) damaged("it goes on after its end: it has " + std::to_string(given) + " bytes of data, and its header says " + std::to_string(size));
    if (size < (int64_t)CHECKSUM_BYTES) damaged("it has no checksum");

    size_t end = file.size - CHECKSUM_BYTES;
    if (crc32(file.data, end) != little_endian_32(file.data + end)) damaged("its checksum is wrong");
    envelope.data = {file.data + start, end - start};
    return envelope;
}

} // namespace fggp
