/* Runs networks for client.cpp, which writes to this process's input and reads its output. */
#include "wire.h"
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

int main() {
#ifdef _WIN32 /* it would change line ends */
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
#endif
    Wire wire{stdin, stdout};
    for (;;) {
        auto request = wire.get<int32_t>();
        auto *network = (fggp_network *)wire.get<uintptr_t>();
        if (request == FREE) {
            fggp_free(network);
            continue;
        }
        const fggp_array *outputs = nullptr;
        int32_t status, count = 0;
        if (request == RUN) {
            auto inputs = wire.get_arrays();
            auto threads = wire.get<int32_t>();
            status = fggp_run(network, views(inputs).data(), (int32_t)inputs.size(), threads, &outputs, &count);
        } else {
            std::string bytes = wire.get_bytes();
            auto tensors = wire.get_arrays();
            if (request == BUILD)
                status = fggp_build(bytes.data(), (int64_t)bytes.size(), views(tensors).data(), (int32_t)tensors.size(), &network);
            else if (request == LOAD) status = fggp_load(bytes.c_str(), &network);
            else status = fggp_load_bytes(bytes.data(), (int64_t)bytes.size(), &network);
        }
        wire.put(status);
        wire.put((uintptr_t)network);
        wire.put_text(status == FGGP_REFUSED ? fggp_error(network) : "");
        wire.put_text(status == FGGP_OK ? fggp_describe(network) : "");
        wire.put_arrays(outputs, status == FGGP_OK ? count : 0);
        wire.send();
    }
}
