#include "file/network_file.h"

#include <algorithm>

#include "file/tensors.h"
#include "network/json.h"
#include "network/types.h"

namespace fggp {

using json::Value;

namespace {

constexpr size_t LENGTH_BYTES = 4; /* of the index's frame */

/* What so many bytes of a file may ask for, so that a short one cannot fill the memory. Text takes about fifty times its
 * size when it is read as JSON. */
int64_t index_limit(size_t frame) {
    constexpr int64_t BASE = 1 << 20, MOST = 16 << 20, TIMES = 64;
    return (int64_t)frame > MOST / TIMES ? MOST : std::min(MOST, BASE + TIMES * (int64_t)frame);
}
int64_t tensor_limit(size_t file) {
    constexpr int64_t BASE = 256 << 20, TIMES = 4096;
    return BASE + TIMES * (int64_t)file;
}

/* The index's three entries are taken out of it. */
struct Index {
    Value tensors, frames, network;
};
Index read_index(Span frame) {
    auto text = decompress(frame, 0, index_limit(frame.size), "its index");
    Value all = json::parse((const char *)text.data(), text.size(), "the file's index");
    Index index;
    bool has_network = false;
    for (auto &entry : all.object) {
        if (entry.first == "tensors") index.tensors = std::move(entry.second);
        else if (entry.first == "frames") index.frames = std::move(entry.second);
        else if (entry.first == "network") index.network = std::move(entry.second), has_network = true;
        else throw Refused("the file's index has an entry \"" + entry.first.substr(0, 40) + "\", which this version of fggp does not know");
    }
    if (!has_network) throw Refused("the file holds the weights of a model, which fggp.save wrote, and no network");
    if (index.network.kind != Value::OBJECT || !index.network.find("version")) damaged("its network has no version");
    return index;
}

/* Name the constant itself wherever a network names a tensor that is tied to it. */
void untie(Value &network, const std::map<std::string, std::string> &ties) {
    auto rename = [&](Value &value) {
        auto tied = value.kind == Value::TEXT ? ties.find(value.text) : ties.end();
        if (tied != ties.end()) value.text = tied->second;
    };
    for (auto &part : network.object)
        for (auto &item : part.second.list)
            for (auto &entry : item.object) {
                if (part.first == "nodes" && entry.first == "in")
                    for (auto &read : entry.second.list) rename(read);
                if (part.first == "outputs" && entry.first == "value") rename(entry.second);
            }
}

} // namespace

NetworkFile read_network_file(Span file) {
    NetworkFile read;
    Envelope envelope = open_envelope(file);
    read.metadata = std::move(envelope.metadata);
    Span data = envelope.data;
    if (data.size < LENGTH_BYTES || little_endian_32(data.data) > data.size - LENGTH_BYTES) damaged("its index is longer than its data");
    Span frame = {data.data + LENGTH_BYTES, little_endian_32(data.data)};
    data = {frame.data + frame.size, data.size - LENGTH_BYTES - frame.size};
    Index index = read_index(frame);
    Tensors tensors = read_tensors(index.tensors, index.frames, data, tensor_limit(file.size));
    untie(index.network, tensors.ties);
    read.graph = read_graph(index.network, std::move(tensors.constants));
    return read;
}

} // namespace fggp
