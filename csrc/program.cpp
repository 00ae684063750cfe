#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "convolution.h"
#include "fggp.h"
#include "operation.h"
#include "planes.h"
#include "threads.h"
#include "tiles.h"

using namespace fggp;

struct fggp_program {
    std::vector<std::unique_ptr<Operation>> operations;
    std::vector<float> scratch;
};

namespace {

/* One run of a program, as its threads see it. */
struct Pass {
    const fggp_program &program;
    Call call;
    int threads;
    double *seconds;
    int64_t scratch;
    float *memory;
    std::vector<std::atomic<int>> next; /* of each operation: the next task to do */
    Barrier barrier;

    Pass(fggp_program &program, const Call &call, int threads, double *seconds)
        : program(program), call(call), threads(threads), seconds(seconds), next(program.operations.size()),
          barrier(threads) {
        scratch = 0;
        for (auto &operation : program.operations) scratch = std::max(scratch, operation->scratch());
        scratch = (scratch + 2 * LANES - 1) / LANES * LANES; /* to a cache line, and one between threads */
        if ((int64_t)program.scratch.size() < scratch * threads + LANES) program.scratch.resize(scratch * threads + LANES);
        uintptr_t start = (uintptr_t)program.scratch.data();
        memory = (float *)((start + 63) / 64 * 64);
        for (auto &counter : next) counter.store(0, std::memory_order_relaxed);
    }

    void work(int thread) {
        auto before = std::chrono::steady_clock::now();
        for (size_t i = 0; i < next.size(); i++) {
            const Operation &operation = *program.operations[i];
            int tasks = operation.tasks(threads);
            for (int task; (task = next[i].fetch_add(1, std::memory_order_relaxed)) < tasks;)
                operation.run(task, tasks, call, memory + thread * scratch);
            barrier.wait();
            if (thread == 0 && seconds) {
                auto now = std::chrono::steady_clock::now();
                seconds[i] += std::chrono::duration<double>(now - before).count();
                before = now;
            }
        }
    }
};

void add(fggp_program *program, Operation *operation) { program->operations.emplace_back(operation); }

} // namespace

extern "C" {

const char *fggp_cpu(void) { return FGGP_CPU; }
int32_t fggp_lanes(void) { return LANES; }
int32_t fggp_registers(void) { return REGISTERS; }

fggp_program *fggp_program_new(void) { return new fggp_program; }
void fggp_program_free(fggp_program *program) { delete program; }

void fggp_add_conv(fggp_program *p, const fggp_conv *chain, int32_t length) { add(p, new_convolution(chain, length)); }
void fggp_add_product(fggp_program *p, const fggp_conv *conv) { add(p, new_product(*conv)); }
void fggp_add_max_pool(fggp_program *p, const fggp_pool *pool) { add(p, new_max_pool(*pool)); }
void fggp_add_average_pool(fggp_program *p, const fggp_pool *pool) { add(p, new_average_pool(*pool)); }
void fggp_add_adaptive_average(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out) {
    add(p, new_adaptive_average(*in, *out));
}
void fggp_add_sum(fggp_program *p, const fggp_tensor *a, const fggp_tensor *b, const fggp_tensor *out, int32_t relu) {
    add(p, new_sum(*a, *b, *out, relu));
}
void fggp_add_affine(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out, const float *scale,
                     const float *shift, int32_t relu) {
    add(p, new_affine(*in, *out, scale, shift, relu));
}
void fggp_add_copy(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out, int32_t first) {
    add(p, new_copy(*in, *out, first));
}
void fggp_add_flatten(fggp_program *p, const fggp_tensor *in, const fggp_tensor *out) {
    add(p, new_flatten(*in, *out));
}
void fggp_add_unfold(fggp_program *p, const fggp_pool *pool) { add(p, new_unfold(*pool)); }
void fggp_add_load(fggp_program *p, int32_t slot, const fggp_strides *strides, const fggp_tensor *out) {
    add(p, new_load(slot, *strides, *out));
}
void fggp_add_store(fggp_program *p, const fggp_tensor *in, int32_t slot, const fggp_strides *strides) {
    add(p, new_store(*in, slot, *strides));
}

void fggp_run(fggp_program *program, void *const *slots, int32_t images, int32_t threads, double *seconds) {
    Pass pass(*program, {slots, images}, threads, seconds);
    Team::instance().run([](void *context, int thread) { ((Pass *)context)->work(thread); }, &pass, threads);
}
}
