/* The steps of a plan, and the memory that they read and write. */
#ifndef FGGP_PLAN_STEPS_H
#define FGGP_PLAN_STEPS_H

#include <functional>
#include <memory>
#include <vector>

#include "operators/operator.h"
#include "plan/layout.h"
#include "plan/sparse_weight.h"

namespace fggp {

/* The memory of an activation in the kernels' layout, or of a tensor in row-major order. */
struct Storage {
    ActivationLayout layout; /* without lanes: row-major order */
    int64_t bytes = 0;       /* what it takes */
    /* A storage whose memory it may take: each of its pixels is written after the same pixel of that one is read. */
    int may_overwrite = -1;

    bool row_major() const { return layout.lanes == 0; }
};

/* Where storages are. */
struct Locations {
    virtual ~Locations() = default;
    virtual float *address(int storage) const = 0;
    virtual fggp_tensor tensor(int storage) const = 0; /* of the kernels' layout */
};

/* A sparse product before its tiling is chosen: a convolution, or a linear layer as a convolution of one pixel. */
struct Convolve {
    const Node *node;
    SparseWeight weight;
    int input, out, residual; /* storages; residual -1: none */
    Pair padding, dilation;
    int64_t stride;
    fggp_activation activation;
    /* Of a quantised product: its numbers, and what is said of it otherwise. */
    std::shared_ptr<const QuantizedNumbers> quantized;
    fggp_quantized quantized_as;

    /* Whether an output pixel depends only on the same pixel of the input. */
    bool pointwise() const {
        return weight.rows == 1 && weight.columns == 1 && padding == Pair{0, 0} && stride == 1;
    }
};

/* What runs a step, for tables. */
enum class Runner { KERNELS, OPERATOR, CONVERSION };

struct Step {
    Runner runner;
    const Node *node; /* NULL: a conversion of layout */
    std::vector<int> reads, writes;
    /* Append the operations that do it. */
    std::function<void(const Locations &, Operations &)> add;
    /* Instead: products that run together, tile by tile. Each after the first is pointwise, and reads the output of the
     * one before it. */
    std::vector<Convolve> chain;
};

/* The storages that a step uses. */
std::vector<int> used_by(const Step &);

} // namespace fggp
#endif
