#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "fggp.h"
#include "runtime/denormals.h"
#include "runtime/operation.h"
#include "threads/parallel.h"
#include "runtime/program.h"
#include "runtime/tiles.h"

namespace fggp {

constexpr int64_t CACHE_LINE_FLOATS = 16;

/* One run of a program: the state that its threads share. */
struct ProgramRun {
    const Program &program;
    Call call;
    double *seconds;
    Failure failure;
    int64_t scratch; /* floats for each thread */
    float *memory;   /* the first thread's scratch memory */
    std::vector<std::atomic<int>> next; /* for each operation, the next task that no thread has taken */
    Barrier barrier;
    std::chrono::steady_clock::time_point before = std::chrono::steady_clock::now(); /* the present operation */

    ProgramRun(Program &program, const Call &call, int threads, double *seconds)
        : program(program), call(call), seconds(seconds), next(program.operations.size()) {
        this->call.failure = &failure;
        scratch = 0;
        for (auto &operation : program.operations) scratch = std::max(scratch, operation->scratch());
        /* whole cache lines, and an unused one between threads */
        scratch = (scratch + 2 * CACHE_LINE_FLOATS - 1) / CACHE_LINE_FLOATS * CACHE_LINE_FLOATS;
        if (scratch > (INT64_MAX - CACHE_LINE_FLOATS) / std::max(threads, 1)) throw std::bad_alloc();
        int64_t needed = scratch * threads + CACHE_LINE_FLOATS;
        if ((int64_t)program.scratch.size() < needed) program.scratch.resize(needed);
        constexpr uintptr_t bytes = CACHE_LINE_FLOATS * sizeof(float);
        memory = (float *)(((uintptr_t)program.scratch.data() + bytes - 1) / bytes * bytes);
        for (auto &counter : next) counter.store(0, std::memory_order_relaxed);
    }

    void work(int thread, int threads) {
        DenormalsAreZero mode;
        for (size_t i = 0; i < next.size(); i++) {
            const Operation &operation = *program.operations[i];
            int tasks = operation.tasks(threads);
            for (int task; (task = next[i].fetch_add(1, std::memory_order_relaxed)) < tasks;)
                operation.run(task, tasks, call, memory + thread * scratch);
            /* By the last thread: any other may lose its core, and read the clock when the next operation is done. */
            barrier.wait(threads, [&] {
                if (!seconds) return;
                auto now = std::chrono::steady_clock::now();
                seconds[i] += std::chrono::duration<double>(now - before).count();
                before = now;
            });
        }
    }
};

void Program::run(const Call &call, int threads, double *seconds) {
    ProgramRun run(*this, call, threads, seconds);
    Work work = [](void *context, int thread, int threads) { ((ProgramRun *)context)->work(thread, threads); };
    run_on_threads(work, &run, threads);
    run.failure.check();
}

} // namespace fggp

using namespace fggp;

extern "C" {

int32_t fggp_interface(void) { return FGGP_INTERFACE; }
const char *fggp_cpu(void) { return FGGP_CPU; }
int32_t fggp_lanes(void) { return LANES; }
int32_t fggp_registers(void) { return REGISTERS; }
}
