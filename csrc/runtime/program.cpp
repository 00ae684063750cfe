#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "runtime/convolution.h"
#include "fggp.h"
#include "runtime/operation.h"
#include "threads/parallel.h"
#include "runtime/planes.h"
#include "runtime/program.h"
#include "runtime/strided.h"
#include "runtime/tiles.h"
#include "runtime/transfers.h"

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

    ProgramRun(Program &program, const Call &call, int threads, double *seconds)
        : program(program), call(call), seconds(seconds), next(program.operations.size()) {
        this->call.failure = &failure;
        scratch = 0;
        for (auto &operation : program.operations) scratch = std::max(scratch, operation->scratch());
        /* whole cache lines, and an unused one between threads */
        scratch = (scratch + 2 * CACHE_LINE_FLOATS - 1) / CACHE_LINE_FLOATS * CACHE_LINE_FLOATS;
        int64_t needed = scratch * threads + CACHE_LINE_FLOATS;
        if ((int64_t)program.scratch.size() < needed) program.scratch.resize(needed);
        constexpr uintptr_t bytes = CACHE_LINE_FLOATS * sizeof(float);
        memory = (float *)(((uintptr_t)program.scratch.data() + bytes - 1) / bytes * bytes);
        for (auto &counter : next) counter.store(0, std::memory_order_relaxed);
    }

    void work(int thread, int threads) {
        auto before = std::chrono::steady_clock::now();
        for (size_t i = 0; i < next.size(); i++) {
            const Operation &operation = *program.operations[i];
            int tasks = operation.tasks(threads);
            for (int task; (task = next[i].fetch_add(1, std::memory_order_relaxed)) < tasks;)
                operation.run(task, tasks, call, memory + thread * scratch);
            barrier.wait(threads);
            if (thread == 0 && seconds) {
                auto now = std::chrono::steady_clock::now();
                seconds[i] += std::chrono::duration<double>(now - before).count();
                before = now;
            }
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

struct fggp_program : Program {};

namespace {

template <class Make> int32_t add(fggp_program *program, const Make &make) {
    return without_throwing([&] { program->operations.push_back(std::unique_ptr<Operation>(make())); });
}

} // namespace

extern "C" {

int32_t fggp_interface(void) { return FGGP_INTERFACE; }
const char *fggp_cpu(void) { return FGGP_CPU; }
int32_t fggp_lanes(void) { return LANES; }
int32_t fggp_registers(void) { return REGISTERS; }

fggp_program *fggp_program_new(void) { return new (std::nothrow) fggp_program; }
void fggp_program_free(fggp_program *program) { delete program; }

int32_t fggp_add_conv(fggp_program *p, const fggp_conv *chain, int32_t length) {
    return add(p, [&] { return new_convolution(chain, length); });
}
int32_t fggp_add_product(fggp_program *p, const fggp_conv *conv) {
    return add(p, [&] { return new_product(*conv); });
}
int32_t fggp_add_strided(fggp_program *p, const fggp_conv *conv) {
    return add(p, [&] { return new_strided(*conv); });
}
int32_t fggp_add_max_pool(fggp_program *p, const fggp_pool *pool) {
    return add(p, [&] { return new_max_pool(*pool); });
}
int32_t fggp_add_average_pool(fggp_program *p, const fggp_pool *pool) {
    return add(p, [&] { return new_average_pool(*pool); });
}
int32_t fggp_add_adaptive_average(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out) {
    return add(p, [&] { return new_adaptive_average(*in, *out); });
}
int32_t fggp_add_sum(fggp_program *p, const fggp_tensor *a, const fggp_tensor *b, const fggp_tensor *out,
                     const fggp_activation *activation) {
    return add(p, [&] { return new_sum(*a, *b, *out, *activation); });
}
int32_t fggp_add_gate(fggp_program *p, const fggp_tensor *in, const fggp_tensor *gate, const fggp_tensor *out,
                      const fggp_activation *activation) {
    return add(p, [&] { return new_gate(*in, *gate, *out, *activation); });
}
int32_t fggp_add_affine(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out, const float *scale,
                        const float *shift, const fggp_activation *activation) {
    return add(p, [&] { return new_affine(*in, *out, scale, shift, *activation); });
}
int32_t fggp_add_copy(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out, const int32_t *pairs,
                      int32_t count) {
    return add(p, [&] { return new_copy(*in, *out, pairs, count); });
}
int32_t fggp_add_flatten(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out) {
    return add(p, [&] { return new_flatten(*in, *out); });
}
int32_t fggp_add_unfold(fggp_program *p, const fggp_pool *pool) {
    return add(p, [&] { return new_unfold(*pool); });
}
int32_t fggp_add_load(fggp_program *p, int32_t slot, const fggp_strides *strides, const fggp_tensor *out) {
    return add(p, [&] { return new_load(slot, *strides, *out); });
}
int32_t fggp_add_store(fggp_program *p, const fggp_tensor *in, int32_t slot, const fggp_strides *strides) {
    return add(p, [&] { return new_store(*in, slot, *strides); });
}

int32_t fggp_program_run(fggp_program *program, void *const *slots, int32_t images, int32_t threads, double *seconds) {
    return without_throwing([&] { program->run({slots, images}, threads, seconds); });
}
}
