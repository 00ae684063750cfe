/* A list of operations, and running them one after the other, each on several threads. */
#ifndef FGGP_PROGRAM_H
#define FGGP_PROGRAM_H

#include <memory>
#include <vector>

#include "runtime/operation.h"

namespace fggp {

struct Program {
    std::vector<std::unique_ptr<Operation>> operations;

    /* Run all operations in order. One run at a time. seconds: NULL, or a number for each operation to add its time to.
     * Throws Failed if an operation reports a failure. */
    void run(const Call &call, int threads, double *seconds);

  private:
    friend struct ProgramRun;
    std::vector<float> scratch;
};

} // namespace fggp
#endif
