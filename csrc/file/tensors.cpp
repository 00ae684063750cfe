#include "file/tensors.h"

#include <algorithm>
#include <cstring>

namespace fggp {

using json::Value;

namespace {

const char *const GAPS = "gaps", *const BF16 = "BF16";
constexpr uint8_t ESCAPE = 255; /* the gap that skips 255 zeros and places no value */

/* A tensor in the index. */
struct Entry {
    Constant *constant;
    bool sparse = false;
    std::string kind; /* of the frames that hold its values */
    int64_t count = 0, gaps = 0;
};

std::string quoted(const std::string &name) { return "\"" + name.substr(0, 80) + "\""; }

TensorType type_of(const std::string &name, const Value &code, const Value &shape) {
    TensorType type;
    if (code.kind != Value::TEXT || shape.kind != Value::LIST) damaged("its tensor " + quoted(name) + " has no type and shape");
    try {
        type.type = type_named(code.text);
    } catch (const Refused &refused) {
        throw Refused("the file's tensor " + quoted(name) + " cannot be part of a network: " + refused.what());
    }
    for (auto &size : shape.list) {
        if (size.kind != Value::INTEGER) damaged("its tensor " + quoted(name) + " has no shape");
        type.shape.push_back(size.integer);
    }
    type.count(); /* refuses negative sizes and what is too large */
    return type;
}

/* The index's list, without the tied tensors, which are set. Memory is not yet taken for any tensor. */
std::vector<Entry> entries_of(const Value &listed, int64_t limit, Tensors &tensors) {
    if (listed.kind != Value::LIST) damaged("its index has no list of tensors");
    std::vector<Entry> entries;
    int64_t left = limit;
    std::map<std::string, std::string> first; /* each name -> the constant's */
    for (auto &item : listed.list) {
        auto &fields = item.list;
        size_t count = fields.size();
        if (!(count == 2 || count == 3 || count == 5 || count == 6) || fields[0].kind != Value::TEXT) damaged("its index lists something that is no tensor");
        const std::string &name = fields[0].text;
        if (first.count(name)) damaged("its index lists the tensor " + quoted(name) + " twice");
        if (count == 2) {
            auto found = fields[1].kind == Value::TEXT ? first.find(fields[1].text) : first.end();
            if (found == first.end()) damaged("its tensor " + quoted(name) + " is tied to none that came before it");
            tensors.ties.emplace(name, found->second);
            first.emplace(name, found->second);
            continue;
        }
        auto constant = std::make_unique<Constant>();
        constant->name = name;
        constant->type = type_of(name, fields[1], fields[2]);
        int64_t elements = constant->type.count(), bytes = constant->type.bytes();
        if (bytes > left) throw Refused("the file's tensors would take more than " + std::to_string(limit) + " bytes, which so short a file may not ask for");
        left -= bytes;
        Entry entry;
        entry.constant = constant.get();
        entry.kind = name_of(constant->type.type);
        entry.count = elements;
        if (count > 3) {
            entry.sparse = true;
            if (fields[3].kind != Value::INTEGER || fields[4].kind != Value::INTEGER) damaged("its tensor " + quoted(name) + " has no numbers of values and gaps");
            entry.count = fields[3].integer, entry.gaps = fields[4].integer;
            if (entry.count < 0 || entry.gaps < entry.count || elements < entry.gaps)
                damaged("its tensor " + quoted(name) + ", " + text_of(constant->type) + ", cannot have " + std::to_string(entry.count) + " values and " + std::to_string(entry.gaps) + " gaps");
            if (count == 6) {
                if (fields[5].text != BF16 || constant->type.type != Type::F32) damaged("its tensor " + quoted(name) + " has rounded values of a wrong type");
                entry.kind = BF16;
            }
        }
        first.emplace(name, name);
        entries.push_back(std::move(entry));
        tensors.constants.push_back(std::move(constant));
    }
    return entries;
}

/* The frames by what they hold. They must fill the data. */
std::map<std::string, std::vector<Span>> frames_of(const Value &listed, Span data) {
    if (listed.kind != Value::OBJECT) damaged("its index has no frames");
    std::map<std::string, std::vector<Span>> found;
    for (auto &entry : listed.object) {
        if (entry.second.kind != Value::LIST) damaged("its index has no list of frames of " + quoted(entry.first));
        auto &own = found[entry.first];
        for (auto &size : entry.second.list) {
            if (size.kind != Value::INTEGER || size.integer < 1 || (uint64_t)size.integer > data.size)
                damaged("its index has a frame of " + quoted(entry.first) + " of a wrong size");
            own.push_back({data.data, (size_t)size.integer});
            data = {data.data + size.integer, data.size - (size_t)size.integer};
        }
    }
    if (data.size) damaged("it has bytes that belong to no frame");
    return found;
}

/* The content of all frames of one kind, of which parts are taken in the order of the tensors. */
class Contents {
  public:
    Contents(const std::string &kind, const std::vector<Span> &frames, int64_t count) {
        split = kind == "F32" ? 4 : kind == BF16 ? 2 : 1;
        size = kind == "I64" ? 8 : 1; /* of an element in a plane */
        if (frames.size() != split) damaged("it has " + std::to_string(frames.size()) + " frames of " + kind + ", and must have " + std::to_string(split));
        for (auto &frame : frames) planes.push_back(decompress(frame, count * size, count * size, "what its frames of " + kind + " hold"));
    }
    /* Bytes of the next elements of a type that is not split. */
    const uint8_t *take(int64_t count) {
        at += count;
        return planes[0].data() + (at - count) * size;
    }
    /* The next floating-point numbers' bits as float32. Their planes hold the bits rotated left by one. */
    void take_floats(int64_t count, uint8_t *to) {
        const uint8_t *plane[4];
        for (size_t p = 0; p < split; p++) plane[p] = planes[p].data() + at;
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits;
            if (split == 4) {
                uint32_t rotated = (uint32_t)plane[0][i] << 24 | plane[1][i] << 16 | plane[2][i] << 8 | plane[3][i];
                bits = rotated >> 1 | rotated << 31;
            } else {
                uint32_t rotated = plane[0][i] << 8 | plane[1][i];
                bits = (rotated >> 1 | (rotated & 1) << 15) << 16;
            }
            memcpy(to + 4 * i, &bits, 4);
        }
        at += count;
    }

  private:
    std::vector<std::vector<uint8_t>> planes; /* the highest bytes first */
    size_t split;
    int64_t size, at = 0;
};

/* The positions that gaps stand for. There are `count`, and all are below `end`. */
template <class Put> void place(const uint8_t *gaps, int64_t number, int64_t count, int64_t end, const std::string &name, const Put &put) {
    int64_t position = -1, placed = 0;
    for (int64_t i = 0; i < number; i++) {
        position += gaps[i] + (gaps[i] != ESCAPE);
        if (position >= end) damaged("the gaps of its tensor " + quoted(name) + " run beyond its end");
        if (gaps[i] == ESCAPE) continue;
        if (placed == count) damaged("the gaps of its tensor " + quoted(name) + " place more than its " + std::to_string(count) + " values");
        put(placed++, position);
    }
    if (placed != count) damaged("the gaps of its tensor " + quoted(name) + " place " + std::to_string(placed) + " values, and it has " + std::to_string(count));
}

void check_bools(const std::vector<uint8_t> &bytes, const std::string &name) {
    if (std::any_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte > 1; })) damaged("its tensor " + quoted(name) + " has bytes that are no BOOL");
}

/* Take the values of a tensor from what the frames of its kind hold. gaps: of a sparse tensor, its own. */
void fill(const Entry &entry, const uint8_t *gaps, Contents *values) {
    Constant &constant = *entry.constant;
    int64_t elements = constant.type.count();
    bool is_float = constant.type.type == Type::F32, is_weight = is_float || constant.type.type == Type::I8;
    if (is_weight && entry.sparse && elements <= UINT32_MAX && entry.count <= SPARSE_FROM * elements) {
        constant.sparse = true;
        constant.positions.resize(entry.count);
        constant.values.resize(entry.count);
        place(gaps, entry.gaps, entry.count, elements, constant.name,
              [&](int64_t i, int64_t position) { constant.positions[i] = (uint32_t)position; });
        if (!entry.count) return; /* then there may be no frames */
        if (is_float) values->take_floats(entry.count, (uint8_t *)constant.values.data());
        else std::copy_n((const int8_t *)values->take(entry.count), entry.count, constant.values.begin());
        return;
    }
    std::vector<uint8_t> bytes(constant.type.bytes());
    int64_t size = bytes_of(constant.type.type);
    auto put = [&](int64_t position) {
        if (is_float) values->take_floats(1, &bytes[position * 4]);
        else if (size == 8) { /* whatever the byte order of this machine is */
            auto *at = values->take(1);
            uint64_t bits = little_endian_32(at) | (uint64_t)little_endian_32(at + 4) << 32;
            memcpy(&bytes[position * 8], &bits, 8);
        } else
            bytes[position] = *values->take(1);
    };
    if (entry.sparse)
        place(gaps, entry.gaps, entry.count, elements, constant.name, [&](int64_t, int64_t position) { put(position); });
    else if (is_float && elements) values->take_floats(elements, bytes.data());
    else
        for (int64_t i = 0; i < elements; i++) put(i);
    if (constant.type.type == Type::BOOL) check_bools(bytes, constant.name);
    constant.set_dense(std::move(bytes));
}

} // namespace

Tensors read_tensors(const Value &listed, const Value &listed_frames, Span data, int64_t limit) {
    Tensors tensors;
    auto entries = entries_of(listed, limit, tensors);
    auto frames = frames_of(listed_frames, data);
    std::map<std::string, int64_t> counts; /* of what frames there must be */
    for (auto &entry : entries) {
        if (entry.gaps) counts[GAPS] += entry.gaps;
        if (entry.count) counts[entry.kind] += entry.count;
    }
    for (auto &own : frames)
        if (!counts.count(own.first)) damaged("it has frames of " + quoted(own.first) + ", which no tensor has values in");
    for (auto &own : counts)
        if (!frames.count(own.first)) damaged("it has no frames of " + own.first);

    std::vector<uint8_t> gaps;
    std::vector<int64_t> gaps_at; /* of each entry */
    int64_t gaps_before = 0;
    for (auto &entry : entries) gaps_at.push_back(gaps_before), gaps_before += entry.gaps;
    if (gaps_before) {
        if (frames[GAPS].size() != 1) damaged("it has more than one frame of gaps");
        gaps = decompress(frames[GAPS][0], gaps_before, gaps_before, "what its frame of gaps holds");
    }
    /* Kind after kind, so that only one is in memory beside the tensors. */
    for (const char *kind : {"F32", BF16, "I64", "BOOL", "U8", "I8"}) {
        std::unique_ptr<Contents> contents;
        if (counts.count(kind)) contents = std::make_unique<Contents>(kind, frames[kind], counts[kind]);
        for (size_t i = 0; i < entries.size(); i++)
            if (entries[i].kind == kind) fill(entries[i], gaps.data() + gaps_at[i], contents.get());
    }
    return tensors;
}

} // namespace fggp
