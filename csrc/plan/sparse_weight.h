/* The non-zero weights of a product, in the order in which the kernels read them. */
#ifndef FGGP_PLAN_SPARSE_WEIGHT_H
#define FGGP_PLAN_SPARSE_WEIGHT_H

#include <memory>
#include <vector>

#include "network/graph.h"
#include "plan/layout.h"

namespace fggp {

/* Numbers for rows and columns. */
struct Pair {
    int64_t rows, columns;
    bool operator==(const Pair &other) const { return rows == other.rows && columns == other.columns; }
    bool operator!=(const Pair &other) const { return !(*this == other); }
};

/* What a quantised product has for each output channel. */
struct QuantizedNumbers {
    std::vector<float> scale;
    std::vector<int32_t> first;
};

/* Weights in the format of fggp_conv. */
struct PackedWeight {
    std::vector<fggp_entry> entries;
    std::vector<uint32_t> starts;
    std::vector<float> bias;
    std::shared_ptr<const QuantizedNumbers> quantized; /* kept, because the operation reads them */
    fggp_quantized quantized_as;
};

/* The weight [outputs, inputs / groups, rows, columns] of a convolution, or of a linear layer, which is a convolution of
 * one pixel. */
class SparseWeight {
  public:
    /* weight: a constant [O, I], [O, I, columns] or [O, I, rows, columns], of fewer than 2³² elements, F32 or I8. It must
     * outlive this, and so must the bias, which may be NULL. The input channels of I8 are counted in blocks of four. */
    SparseWeight(const Constant &weight, const Constant *bias, int64_t groups);

    /* The same weight for an unfolded input, which has a channel for each input channel and kernel position. */
    SparseWeight unfolded() const;

    int64_t outputs, inputs, rows, columns; /* `inputs` are those of all groups */
    int64_t nonzeros() const { return (int64_t)values->size(); }
    /* The share of the constant's elements that are not zero. */
    double density() const;
    bool quantized() const { return whole; }
    /* The sum of each output channel's weights, which are whole numbers. */
    std::vector<int32_t> sums() const;

    /* chunk: the number of input channels in a chunk. */
    PackedWeight pack(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk) const;

  private:
    struct Collected { /* from a constant that is not held as a sparse one */
        std::vector<uint32_t> positions;
        std::vector<float> values;
    };
    std::shared_ptr<const Collected> collected;
    const std::vector<uint32_t> *positions; /* in the constant, ascending */
    const std::vector<float> *values;
    void pack_values(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk, PackedWeight &) const;
    void pack_blocks(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk, PackedWeight &) const;

    /* Weights of an output channel for each input channel. */
    int64_t taps() const { return unfolded_taps ? unfolded_taps : rows * columns; }

    const Constant *bias;
    int64_t groups;
    int64_t group_inputs;       /* channels, also where `inputs` counts blocks */
    int64_t unfolded_taps = 0;  /* positions of the kernel, each of which is an input channel of its own; 0: not unfolded */
    bool whole;
};

} // namespace fggp
#endif
