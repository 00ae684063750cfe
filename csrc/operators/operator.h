/* Operators on tensors in row-major order. Each is a pair of functions: what its outputs are, and what computes them.
 *
 * Convolutions and what stands between them mostly run in the kernels' own layout instead (plan/, runtime/). */
#ifndef FGGP_OPERATORS_OPERATOR_H
#define FGGP_OPERATORS_OPERATOR_H

#include <memory>
#include <string>
#include <vector>

#include "network/graph.h"
#include "network/types.h"
#include "runtime/operation.h"

namespace fggp {

typedef std::vector<std::unique_ptr<Operation>> Operations;
/* The inputs of a node; NULL for one that is absent. */
typedef std::vector<const TensorType *> InputTypes;
typedef std::vector<const Array *> InputArrays;

struct Operator {
    const char *name;
    /* Checks inputs and attributes, and returns the types of the outputs. Whatever a damaged file says, this throws
     * Refused (by node.refuse) or returns what `make` can compute without reading or writing anything else. The sizes
     * of tensors may be 0. */
    std::vector<TensorType> (*infer)(const Node &, const InputTypes &, const Sizes &);
    /* Append the operations that compute the outputs from the inputs. No output overlaps an input. The arrays' memory
     * outlives the operations, and constants are filled; others are not filled yet. */
    void (*make)(const Node &, const InputArrays &, const std::vector<Array> &outputs, const Sizes &, Operations &);
    /* The output's bytes are the first input's. `make` is NULL. */
    bool same_bytes = false;
    /* Whether it reads or returns U8 and I8. `inferred` refuses them for the others. */
    bool quantized = false;
};

/* The types of a node's outputs. Throws Refused: it cannot read these inputs, or has another number of outputs. */
std::vector<TensorType> inferred(const Node &, const InputTypes &, const Sizes &);

/* The operator of this name; NULL: the library has none. */
const Operator *find_operator(const std::string &name);

/* The operators of each file, which find_operator() looks through. */
extern const std::vector<Operator> ELEMENTWISE_OPERATORS; /* elementwise.cpp */
extern const std::vector<Operator> REDUCTION_OPERATORS;   /* reductions.cpp */
extern const std::vector<Operator> NORM_OPERATORS;        /* norms.cpp */
extern const std::vector<Operator> ARRANGING_OPERATORS;   /* arranging.cpp: slice, pad, … */
extern const std::vector<Operator> PERMUTE_OPERATORS;     /* permute.cpp */
extern const std::vector<Operator> MOVEMENT_OPERATORS;    /* movement.cpp: concat, take, reshape, … */
extern const std::vector<Operator> POOLING_OPERATORS;     /* pooling.cpp */
extern const std::vector<Operator> RESIZE_OPERATORS;      /* resize.cpp */
extern const std::vector<Operator> PRODUCT_OPERATORS;     /* products.cpp: linear, matmul, attention */
extern const std::vector<Operator> CONVOLUTION_OPERATORS; /* convolutions.cpp */
extern const std::vector<Operator> TRANSPOSED_OPERATORS;  /* transposed.cpp */
extern const std::vector<Operator> RECURRENT_OPERATORS;   /* recurrent.cpp: LSTM, GRU */
extern const std::vector<Operator> QUANTIZED_OPERATORS;   /* quantized.cpp: products and sums of whole numbers */

} // namespace fggp
#endif
