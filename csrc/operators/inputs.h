/* Checks of what a node reads that many operators need. */
#ifndef FGGP_OPERATORS_INPUTS_H
#define FGGP_OPERATORS_INPUTS_H

#include "operators/operator.h"

namespace fggp {

/* Refuses a node that reads fewer than `least` or more than `most` tensors, or leaves out one of the first `least`. */
inline void check_inputs(const Node &node, const InputTypes &inputs, size_t least, size_t most) {
    bool enough = inputs.size() >= least && inputs.size() <= most;
    for (size_t i = 0; enough && i < least; i++) enough = inputs[i] != nullptr;
    if (!enough)
        node.refuse("it reads " + std::to_string(least) + (most > least ? " or more" : "") +
                    (least == 1 && most == 1 ? " tensor" : " tensors"));
}

/* Refuses an input of another type, where `what` names it. */
inline void check_type(const Node &node, const TensorType &input, Type type, const char *what) {
    if (input.type != type)
        node.refuse(std::string(what) + " is " + text_of(input) + ", and must be " + name_of(type));
}

/* The product of the sizes of the dimensions from `begin` to before `end`. */
inline int64_t product(const Shape &shape, int begin, int end) {
    int64_t result = 1;
    for (int d = begin; d < end; d++) result *= shape[d];
    return result;
}

} // namespace fggp
#endif
