#include "operators/inputs.h"

#include <algorithm>

namespace fggp {

void check_inputs(const Node &node, const InputTypes &inputs, size_t least, size_t most) {
    bool enough = inputs.size() >= least && inputs.size() <= most;
    for (size_t i = 0; enough && i < least; i++) enough = inputs[i] != nullptr;
    if (!enough)
        node.refuse("it reads " + std::to_string(least) + (most > least ? " or more" : "") +
                    (least == 1 && most == 1 ? " tensor" : " tensors"));
}

void check_type(const Node &node, const TensorType &input, Type type, const char *what) {
    if (input.type != type)
        node.refuse(std::string(what) + " is " + text_of(input) + ", and must be " + name_of(type));
}

void check_floats(const Node &node, const TensorType *input, const Shape &shape, const char *what) {
    TensorType right{Type::F32, shape};
    if (input && *input != right)
        node.refuse(std::string(what) + " is " + text_of(*input) + ", and must be " + text_of(right));
}

void check_rank(const Node &node, const TensorType &input, int least, const char *what) {
    if (input.rank() < least)
        node.refuse(std::string(what) + " is " + text_of(input) + ", and must have " + std::to_string(least) +
                    " dimensions or more");
}

std::vector<int64_t> numbers_by_dimension(const Node &node, const char *key, int spatial, int64_t least) {
    auto numbers = node.integers(key, (size_t)spatial);
    for (int64_t number : numbers)
        if (number < least || number > (1 << 30))
            node.refuse(std::string("\"") + key + "\" has " + std::to_string(number) + ", and must have numbers from " +
                        std::to_string(least) + " to 2^30");
    return numbers;
}

Axis::Axis(const Shape &shape, int dim) {
    for (int d = 0; d < (int)shape.size(); d++) (d < dim ? outer : d == dim ? count : inner) *= shape[d];
}
Axis::Axis(const Node &node, const Shape &shape)
    : Axis(shape, node.dimension("dim", std::max(1, (int)shape.size()))) {}

} // namespace fggp
