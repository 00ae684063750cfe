/* Products of matrices as an operation, which several threads share. */
#ifndef FGGP_OPERATORS_GEMM_OPERATION_H
#define FGGP_OPERATORS_GEMM_OPERATION_H

#include <memory>
#include <vector>

#include "operators/gemm.h"

namespace fggp {

/* Products that differ only in where their matrices start: product (i, j, …) of sizes (I, J, …) at the sum of its
 * indices times the strides, in floats. An empty list of strides is all 0. */
struct Batches {
    std::vector<int64_t> sizes, a, b, out, residual;
};

/* The products as an operation, which several threads share. The operation packs constant matrices and keeps the copy;
 * `packed_a`, `packed_b` and `activation` are NULL. It owns the patches. What b's patches hold may change from run to
 * run. Neither rows nor columns nor a size of the batches is 0. */
std::unique_ptr<Operation> new_gemm(const Gemm &, bool constant_a, bool constant_b, const fggp_activation &,
                                    const Batches &batches = {}, std::unique_ptr<Patches> patches = nullptr);

} // namespace fggp
#endif
