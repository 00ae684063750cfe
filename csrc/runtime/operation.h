/* The operations of a program. Each is divided into tasks, which any thread may run in any order. */
#ifndef FGGP_OPERATION_H
#define FGGP_OPERATION_H

#include "fggp.h"

namespace fggp {

/* The arguments of one run of a program. */
struct Call {
    void *const *slots; /* addresses of inputs and outputs */
    int32_t images;
};

struct Operation {
    virtual ~Operation() = default;
    /* The number of tasks for this number of threads. */
    virtual int tasks(int threads) const = 0;
    /* Run one of the `tasks`. */
    virtual void run(int task, int tasks, const Call &call, float *scratch) const = 0;
    /* Floats of scratch memory that a thread needs. */
    virtual int64_t scratch() const { return 0; }
};

/* The part of 0 … count - 1 that a task processes. The sizes of the parts differ by at most one. */
struct Range {
    int64_t begin, end;
    Range(int64_t count, int64_t task, int64_t tasks) : begin(count * task / tasks), end(count * (task + 1) / tasks) {}
};

} // namespace fggp
#endif
