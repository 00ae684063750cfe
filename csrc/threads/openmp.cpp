#include "threads/openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>

namespace fggp {
namespace {

struct OpenMP {
    void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);
    int (*thread)();
    int (*threads)();
    pid_t process = getpid();

    OpenMP() {
        find(parallel, "GOMP_parallel");
        find(thread, "omp_get_thread_num");
        find(threads, "omp_get_num_threads");
    }

    /* Not in a forked child, where OpenMP would wait for threads that only the parent has. */
    bool usable() const { return parallel && thread && threads && process == getpid(); }

  private:
    template <class Function> static void find(Function &function, const char *name) {
        function = (Function)dlsym(RTLD_DEFAULT, name);
    }
};

const OpenMP openmp;

struct WorkAndContext {
    Work work;
    void *context;
};

} // namespace

bool run_on_openmp(Work work, void *context, int threads) {
    if (!openmp.usable()) return false;
    WorkAndContext call{work, context};
    openmp.parallel(
        [](void *given) {
            const WorkAndContext &call = *(WorkAndContext *)given;
            call.work(call.context, openmp.thread(), openmp.threads());
        },
        &call, (unsigned)threads, 0);
    return true;
}

} // namespace fggp

#else

namespace fggp {
bool run_on_openmp(Work, void *, int) { return false; }
} // namespace fggp

#endif
