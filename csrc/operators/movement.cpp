/* Operators that move elements, or only look at them in another shape. */
#include "operators/operator.h"

namespace fggp {
namespace {

std::vector<TensorType> infer_reshape(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    if (inputs.size() != 1 || !inputs[0]) node.refuse("it reads one tensor");
    TensorType type{inputs[0]->type, node.sizes("shape", sizes)};
    if (type.count() != inputs[0]->count())
        node.refuse(text_of(*inputs[0]) + " cannot have the shape " + text_of(type.shape));
    return {type};
}

} // namespace

const std::vector<Operator> MOVEMENT_OPERATORS = {{"reshape", infer_reshape, nullptr, true}};
} // namespace fggp
