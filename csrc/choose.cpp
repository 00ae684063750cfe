/* libfggp where there are several builds: it opens the one for this processor, which lies beside it, when it is first
 * called, and passes all calls on. It is compiled without any build's flags itself. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "fggp.h"

namespace {

#if defined(__x86_64__)
const char *best_build() {
    __builtin_cpu_init();
    bool fma = __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return "avx512";
    return fma && __builtin_cpu_supports("avx2") ? "avx2" : "generic";
}
#else
#error "there is only one build for this processor, which is libfggp itself"
#endif

/* The functions of the build. It is never closed, because its threads may outlive every network. */
struct Build {
    decltype(&fggp_load) load = nullptr; /* found last; NULL: `error` says why there is no build */
    decltype(&fggp_load_bytes) load_bytes;
    decltype(&fggp_build) build;
    decltype(&fggp_free) free;
    decltype(&fggp_error) error_of;
    decltype(&fggp_describe) describe;
    decltype(&fggp_run) run;
    decltype(&fggp_profile) profile;
    decltype(&fggp_cpu) cpu;
    char error[8192];

    Build() {
        char path[4096];
        Dl_info own;
        if (!dladdr(&LIES_HERE, &own) || strlen(own.dli_fname) + 40 > sizeof path) {
            snprintf(error, sizeof error, "libfggp does not know which folder it lies in");
            return;
        }
        const char *slash = strrchr(own.dli_fname, '/');
        int folder = slash ? (int)(slash + 1 - own.dli_fname) : 0;
        snprintf(path, sizeof path, "%.*slibfggp_%s" FGGP_SUFFIX, folder, own.dli_fname, best_build());
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            snprintf(error, sizeof error, "%s", dlerror());
            return;
        }
        decltype(&fggp_interface) interface;
        bool fits = find(library, interface, "fggp_interface") && interface() == FGGP_INTERFACE &&
                    find(library, load_bytes, "fggp_load_bytes") && find(library, build, "fggp_build") &&
                    find(library, free, "fggp_free") && find(library, error_of, "fggp_error") &&
                    find(library, describe, "fggp_describe") && find(library, run, "fggp_run") &&
                    find(library, profile, "fggp_profile") &&
                    find(library, cpu, "fggp_cpu") && find(library, load, "fggp_load");
        if (!fits) snprintf(error, sizeof error, "%s belongs to another version of libfggp", path);
    }

  private:
    static const char LIES_HERE;

    template <class Function> static bool find(void *library, Function &function, const char *name) {
        function = (Function)dlsym(library, name);
        return function;
    }
};
const char Build::LIES_HERE = 0;

const Build &chosen() {
    static const Build build;
    return build;
}

int32_t no_build(fggp_network **network) {
    *network = nullptr;
    return FGGP_REFUSED;
}

} // namespace

extern "C" {

int32_t fggp_load(const char *path, fggp_network **network) {
    return chosen().load ? chosen().load(path, network) : no_build(network);
}
int32_t fggp_load_bytes(const void *bytes, int64_t size, fggp_network **network) {
    return chosen().load ? chosen().load_bytes(bytes, size, network) : no_build(network);
}
int32_t fggp_build(const char *description, int64_t length, const fggp_array *tensors, int32_t count,
                   fggp_network **network) {
    return chosen().load ? chosen().build(description, length, tensors, count, network) : no_build(network);
}
/* Below, a network shows that there is a build. */
void fggp_free(fggp_network *network) {
    if (network) chosen().free(network);
}
const char *fggp_error(const fggp_network *network) {
    return chosen().load ? chosen().error_of(network) : chosen().error;
}
const char *fggp_describe(const fggp_network *network) { return chosen().describe(network); }
int32_t fggp_run(fggp_network *network, const fggp_array *inputs, int32_t count, int32_t threads,
                 const fggp_array **outputs, int32_t *output_count) {
    return chosen().run(network, inputs, count, threads, outputs, output_count);
}
int32_t fggp_profile(fggp_network *network, const fggp_array *inputs, int32_t count, int32_t threads,
                     const char **profile) {
    return chosen().profile(network, inputs, count, threads, profile);
}
const char *fggp_cpu(void) { return chosen().load ? chosen().cpu() : "none"; }
int32_t fggp_interface(void) { return FGGP_INTERFACE; }
}
