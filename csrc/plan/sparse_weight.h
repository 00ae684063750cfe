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

/* Weights in the format of fggp_conv. */
struct PackedWeight {
    std::vector<fggp_entry> entries;
    std::vector<uint32_t> starts;
    std::vector<float> bias;
};

/* The weight [outputs, inputs / groups, rows, columns] of a convolution, or of a linear layer, which is a convolution of
 * one pixel. */
class SparseWeight {
  public:
    /* weight: a constant [O, I], [O, I, columns] or [O, I, rows, columns], of fewer than 2³² elements. It must outlive
     * this, and so must the bias, which may be NULL. */
    SparseWeight(const Constant &weight, const Constant *bias, int64_t groups);

    /* The same weight for an unfolded input, which has a channel for each input channel and kernel position. */
    SparseWeight unfolded() const;

    int64_t outputs, inputs, rows, columns; /* `inputs` are those of all groups */
    int64_t nonzeros() const { return (int64_t)values->size(); }
    /* The share of the constant's elements that are not zero. */
    double density() const;

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
    const Constant *bias;
    int64_t groups;
};

} // namespace fggp
#endif
