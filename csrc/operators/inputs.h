/* Checks of what a node reads that many operators need. */
#ifndef FGGP_OPERATORS_INPUTS_H
#define FGGP_OPERATORS_INPUTS_H

#include "operators/operator.h"

/* For functions that prepare a network. They run once, so they are made small instead of fast. */
#define FGGP_ONCE __attribute__((cold))

namespace fggp {

/* An input that may be left out; NULL if it is. */
template <class Item> const Item *optional(const std::vector<const Item *> &inputs, size_t i) {
    return i < inputs.size() ? inputs[i] : nullptr;
}

/* Refuses a node that reads fewer than `least` or more than `most` tensors, or leaves out one of the first `least`. */
void check_inputs(const Node &, const InputTypes &, size_t least, size_t most);
/* Refuses an input of another type, where `what` names it. */
void check_type(const Node &, const TensorType &input, Type, const char *what);
/* Refuses an input of another shape than this one, or that is not F32, unless it is left out. */
void check_floats(const Node &, const TensorType *input, const Shape &, const char *what);
/* Refuses an input of fewer dimensions. */
void check_rank(const Node &, const TensorType &input, int least, const char *what);

/* An attribute with a number for each spatial dimension, from `least` to 2³⁰, so products of two do not overflow. */
std::vector<int64_t> numbers_by_dimension(const Node &, const char *key, int spatial, int64_t least);

/* A tensor as outer × count × inner elements, where the middle one is a dimension. A single number has one, as PyTorch
 * sees it. */
struct Axis {
    int64_t outer = 1, count = 1, inner = 1;
    Axis(const Shape &, int dim);
    Axis(const Node &, const Shape &); /* of the attribute "dim" */
};

/* The product of the sizes of the dimensions from `begin` to before `end`. */
inline int64_t product(const Shape &shape, int begin, int end) {
    int64_t result = 1;
    for (int d = begin; d < end; d++) result *= shape[d];
    return result;
}

} // namespace fggp
#endif
