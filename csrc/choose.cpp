/* libfggp where there are several builds: it opens the one for this processor, which lies beside it, when it is first
 * called, and passes all calls on. It is compiled without any build's flags itself. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdio.h>

#include "beside.h"
#include "fggp.h"

namespace {

#if defined(__x86_64__)
/* Compilers have __builtin_cpu_supports for this, but Zig's answers no to everything. */
const char *best_build() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE) || !(ecx & bit_FMA)) return "generic";
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return "generic";
    unsigned saved; /* registers that the system saves when it switches threads */
    asm volatile("xgetbv" : "=a"(saved) : "c"(0) : "edx");
    constexpr unsigned YMM = 0x06;
#ifdef __APPLE__
    constexpr unsigned ZMM = YMM; /* macOS begins to save the others when a thread first uses them */
#else
    constexpr unsigned ZMM = 0xe6;
#endif
    constexpr unsigned AVX512 = bit_AVX512F | bit_AVX512VL | bit_AVX512DQ | bit_AVX512BW;
    if ((saved & ZMM) == ZMM && (ebx & AVX512) == AVX512) return "avx512";
    return (saved & YMM) == YMM && ebx & bit_AVX2 ? "avx2" : "generic";
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
    fggp::Beside library{&LIES_HERE, file_name()};
    char error[8192];

    Build() {
        decltype(&fggp_interface) number;
        bool fits = find(number, "fggp_interface") && number() == FGGP_INTERFACE &&
                    find(load_bytes, "fggp_load_bytes") && find(build, "fggp_build") && find(free, "fggp_free") &&
                    find(error_of, "fggp_error") && find(describe, "fggp_describe") && find(run, "fggp_run") &&
                    find(profile, "fggp_profile") && find(cpu, "fggp_cpu") && find(load, "fggp_load");
        if (*library.error) snprintf(error, sizeof error, "%s", library.error);
        else if (!fits) snprintf(error, sizeof error, "%s belongs to another version of libfggp", library.path);
    }

  private:
    static const char LIES_HERE;
    static const char *file_name() {
        static char name[40];
        snprintf(name, sizeof name, "libfggp_%s" FGGP_SUFFIX, best_build());
        return name;
    }
    template <class Function> bool find(Function &function, const char *name) const {
        return library.find(function, name);
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
