/* What a program is made of: operations that fall into tasks, which any threads may do in any order. */
#ifndef FGGP_OPERATION_H
#define FGGP_OPERATION_H

#include "fggp.h"

namespace fggp {

/* What is new in each run of a program. */
struct Call {
    void *const *slots; /* addresses of inputs and outputs */
    int32_t images;
};

struct Operation {
    virtual ~Operation() = default;
    /* Into how many tasks it falls for so many threads. */
    virtual int tasks(int threads) const = 0;
    virtual void run(int task, int tasks, const Call &call, float *scratch) const = 0;
    /* Floats of scratch memory that a thread needs. */
    virtual int64_t scratch() const { return 0; }
};

/* The part of 0 … count that a task does; parts differ by at most one. */
struct Range {
    int64_t begin, end;
    Range(int64_t count, int64_t task, int64_t tasks) : begin(count * task / tasks), end(count * (task + 1) / tasks) {}
};

} // namespace fggp
#endif
