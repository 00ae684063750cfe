/* The C interface of networks: no exception leaves it. */
#include <algorithm>
#include <cmath>
#include <new>

#include "fggp.h"
#include "file/bytes.h"
#include "file/network_file.h"
#include "network/session.h"
#include "network/utf8.h"
#include "plan/memory.h"

using namespace fggp;

struct fggp_network {
    std::unique_ptr<Session> session; /* NULL: the network was refused when it was made */
    std::string error, description, profile;
    std::vector<fggp_array> outputs;
};

namespace {

const char *const OUT_OF_MEMORY = "out of memory"; /* so short that a std::string needs none for it */

/* Set the error, or a short one if there is no memory for it. */
void set_error(fggp_network &network, const char *text, const char *otherwise, const char *before = "") {
    try {
        network.error = before;
        network.error += text;
    } catch (const std::bad_alloc &) {
        network.error = otherwise;
    }
}

template <class Do> int32_t reporting(fggp_network *network, const Do &action) {
    try {
        network->error.clear();
        action();
        return FGGP_OK;
    } catch (const Refused &refused) {
        network->error = as_utf8(refused.what());
        return FGGP_REFUSED;
    } catch (const NoMemory &missing) {
        set_error(*network, missing.what(), OUT_OF_MEMORY);
        return FGGP_OUT_OF_MEMORY;
    } catch (const std::bad_alloc &) {
    } catch (const std::length_error &) { /* a container that would be larger than memory */
    } catch (const std::exception &other) {
        set_error(*network, other.what(), "a defect of fggp", "a defect of fggp: ");
        return FGGP_REFUSED;
    }
    network->error = OUT_OF_MEMORY;
    return FGGP_OUT_OF_MEMORY;
}

/* The type of a caller's array. */
TensorType type_of(const fggp_array &array) {
    if (array.type < FGGP_F32 || array.type > FGGP_I8) throw Refused("the type " + std::to_string(array.type) + " is none of FGGP_F32 to FGGP_I8");
    if (array.rank < 0 || array.rank > RANK_MAX) throw Refused("a tensor cannot have " + std::to_string(array.rank) + " dimensions");
    TensorType type{(Type)array.type, Shape(array.shape, array.shape + array.rank)};
    type.count(); /* refuses what is too large */
    return type;
}

std::unique_ptr<Constant> constant_of(const fggp_array &array) {
    auto constant = std::make_unique<Constant>();
    constant->name = array.name;
    constant->type = type_of(array);
    int64_t count = constant->type.count();
    auto *floats = (const float *)array.data;
    auto is_value = [](float x) { return x != 0 || std::signbit(x); };
    if (constant->type.type == Type::F32 && count <= UINT32_MAX &&
        std::count_if(floats, floats + count, is_value) <= SPARSE_FROM * count) {
        constant->sparse = true;
        for (int64_t i = 0; i < count; i++)
            if (is_value(floats[i])) constant->positions.push_back((uint32_t)i), constant->values.push_back(floats[i]);
    } else if (auto *whole = (const int8_t *)array.data;
               constant->type.type == Type::I8 && count <= UINT32_MAX && count - std::count(whole, whole + count, 0) <= SPARSE_FROM * count) {
        constant->sparse = true;
        for (int64_t i = 0; i < count; i++)
            if (whole[i]) constant->positions.push_back((uint32_t)i), constant->values.push_back(whole[i]);
    } else {
        auto *bytes = (const uint8_t *)array.data;
        constant->set_dense({bytes, bytes + constant->type.bytes()});
    }
    return constant;
}

std::string described(const Graph &graph, const Metadata &metadata) {
    std::string text = "{\"inputs\":[";
    for (auto &input : graph.inputs) {
        text += (&input == &graph.inputs[0] ? "{" : ",{") + std::string("\"name\":") + json::quoted(input.name) + ",\"type\":\"" + name_of(input.type) + "\",\"shape\":[";
        for (auto &size : input.sizes.list)
            text += (&size == &input.sizes.list[0] ? "" : ",") + (size.kind == json::Value::TEXT ? json::quoted(size.text) : std::to_string(size.integer));
        text += "]}";
    }
    text += "],\"outputs\":[";
    for (auto &output : graph.outputs) text += (&output == &graph.outputs[0] ? "" : ",") + json::quoted(output.name);
    text += "],\"metadata\":{";
    for (auto &entry : metadata)
        text += (&entry == &metadata[0] ? "" : ",") + json::quoted(entry.first) + ":" + json::quoted(entry.second);
    return text + "}}";
}

void set_network(fggp_network &made, std::unique_ptr<Graph> graph, const Metadata &metadata) {
    made.description = described(*graph, metadata);
    made.session = std::make_unique<Session>(std::move(graph));
}

void load(fggp_network &made, Span bytes) {
    NetworkFile file = read_network_file(bytes);
    set_network(made, std::move(file.graph), file.metadata);
}

/* The caller's inputs in the order of the network's. */
std::vector<Array> given_inputs(const fggp_network &network, const fggp_array *inputs, int32_t count) {
    if (!network.session) throw Refused("the network was not loaded");
    const Graph &graph = *network.session->graph;
    std::vector<Array> given(graph.inputs.size());
    std::vector<bool> found(graph.inputs.size());
    for (int32_t i = 0; i < count; i++) {
        auto input = std::find_if(graph.inputs.begin(), graph.inputs.end(), [&](auto &one) { return one.name == inputs[i].name; });
        if (input == graph.inputs.end()) throw Refused("the network has no input \"" + std::string(inputs[i].name) + "\"");
        size_t place = input - graph.inputs.begin();
        if (found[place]) throw Refused("the input \"" + input->name + "\" is given twice");
        found[place] = true;
        given[place] = {type_of(inputs[i]), (void *)inputs[i].data, false};
    }
    for (size_t i = 0; i < found.size(); i++)
        if (!found[i]) throw Refused("the input \"" + graph.inputs[i].name + "\" is missing");
    return given;
}

} // namespace

extern "C" {

int32_t fggp_build(const char *description, int64_t length, const fggp_array *tensors, int32_t count,
                   fggp_network **network) {
    fggp_network *made = *network = new (std::nothrow) fggp_network;
    if (!made) return FGGP_OUT_OF_MEMORY;
    return reporting(made, [&] {
        std::vector<std::unique_ptr<Constant>> constants;
        for (int32_t i = 0; i < count; i++) constants.push_back(constant_of(tensors[i]));
        set_network(*made, read_graph(json::parse(description, length, "the description"), std::move(constants)), {});
    });
}

int32_t fggp_load(const char *path, fggp_network **network) {
    fggp_network *made = *network = new (std::nothrow) fggp_network;
    if (!made) return FGGP_OUT_OF_MEMORY;
    return reporting(made, [&] {
        try {
            auto bytes = read_bytes(path);
            load(*made, {bytes.data(), bytes.size()});
        } catch (const Refused &refused) {
            throw Refused(std::string(path) + ": " + refused.what());
        }
    });
}

int32_t fggp_load_bytes(const void *bytes, int64_t size, fggp_network **network) {
    fggp_network *made = *network = new (std::nothrow) fggp_network;
    if (!made) return FGGP_OUT_OF_MEMORY;
    return reporting(made, [&] {
        if (size < 0 || (uint64_t)size > SIZE_MAX) throw Refused("a file cannot have " + std::to_string(size) + " bytes");
        load(*made, {(const uint8_t *)bytes, (size_t)size});
    });
}

void fggp_free(fggp_network *network) { delete network; }

const char *fggp_error(const fggp_network *network) { return network ? network->error.c_str() : OUT_OF_MEMORY; }
const char *fggp_describe(const fggp_network *network) { return network->description.c_str(); }

int32_t fggp_run(fggp_network *network, const fggp_array *inputs, int32_t count, int32_t threads,
                 const fggp_array **outputs, int32_t *output_count) {
    return reporting(network, [&] {
        auto given = given_inputs(*network, inputs, count);
        auto &arrays = network->session->run(given, std::max(threads, 1));
        network->outputs.clear();
        for (size_t i = 0; i < arrays.size(); i++) {
            auto &type = arrays[i].type;
            network->outputs.push_back({network->session->graph->outputs[i].name.c_str(), (int32_t)type.type, type.rank(), type.shape.data(), arrays[i].data});
        }
        *outputs = network->outputs.data();
        *output_count = (int32_t)network->outputs.size();
    });
}

int32_t fggp_profile(fggp_network *network, const fggp_array *inputs, int32_t count, int32_t threads,
                     const char **profile) {
    return reporting(network, [&] {
        auto given = given_inputs(*network, inputs, count);
        network->profile = network->session->profile(given, std::max(threads, 1));
        *profile = network->profile.c_str();
    });
}
}
