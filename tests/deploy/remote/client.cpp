/* fggp's C interface of networks, carried out by another process: so that Python's tests can test the library of another
 * processor, which an emulator runs. The environment variable FGGP_REMOTE is the command that starts server.cpp. */
#include <unistd.h>

#include "wire.h"

struct fggp_network {
    uintptr_t there = 0;
    std::string error, description;
    std::vector<OwnArray> results;
    std::vector<fggp_array> outputs;
};

namespace {

Wire start() {
    int requests[2], replies[2];
    if (pipe(requests) || pipe(replies)) abort();
    if (fork() == 0) {
        dup2(requests[0], 0);
        dup2(replies[1], 1);
        for (int end : {requests[0], requests[1], replies[0], replies[1]}) close(end);
        execl("/bin/sh", "sh", "-c", getenv("FGGP_REMOTE"), (char *)nullptr);
        _exit(127);
    }
    close(requests[0]);
    close(replies[1]);
    return {fdopen(replies[0], "rb"), fdopen(requests[1], "wb")};
}

Wire &wire() {
    static Wire started = start();
    return started;
}

int32_t reply(fggp_network &network) {
    wire().send();
    auto status = wire().get<int32_t>();
    network.there = wire().get<uintptr_t>();
    network.error = wire().get_bytes();
    std::string description = wire().get_bytes();
    if (network.description.empty()) network.description = description; /* callers keep pointers to it */
    network.results = wire().get_arrays();
    network.outputs = views(network.results);
    return status;
}

int32_t make(Request request, const void *bytes, int64_t size, const fggp_array *tensors, int32_t count,
             fggp_network **network) {
    *network = new fggp_network;
    wire().put<int32_t>(request);
    wire().put<uintptr_t>(0);
    wire().put_bytes(bytes, size);
    wire().put_arrays(tensors, count);
    return reply(**network);
}

} // namespace

extern "C" {
int32_t fggp_interface(void) { return FGGP_INTERFACE; }
const char *fggp_cpu(void) { return "remote"; }
int32_t fggp_load(const char *path, fggp_network **network) {
    return make(LOAD, path, (int64_t)std::string(path).size(), nullptr, 0, network);
}
int32_t fggp_load_bytes(const void *bytes, int64_t size, fggp_network **network) {
    return make(LOAD_BYTES, bytes, size, nullptr, 0, network);
}
int32_t fggp_build(const char *description, int64_t length, const fggp_array *tensors, int32_t count,
                   fggp_network **network) {
    return make(BUILD, description, length, tensors, count, network);
}
int32_t fggp_run(fggp_network *network, const fggp_array *inputs, int32_t count, int32_t threads,
                 const fggp_array **outputs, int32_t *output_count) {
    wire().put<int32_t>(RUN);
    wire().put(network->there);
    wire().put_arrays(inputs, count);
    wire().put(threads);
    int32_t status = reply(*network);
    *outputs = network->outputs.data();
    *output_count = (int32_t)network->outputs.size();
    return status;
}
void fggp_free(fggp_network *network) {
    if (!network) return;
    wire().put<int32_t>(FREE);
    wire().put(network->there);
    delete network;
}
const char *fggp_error(const fggp_network *network) { return network->error.c_str(); }
const char *fggp_describe(const fggp_network *network) { return network->description.c_str(); }
int32_t fggp_profile(fggp_network *network, const fggp_array *, int32_t, int32_t, const char **) {
    network->error = "times in an emulator say nothing";
    return FGGP_REFUSED;
}
}
