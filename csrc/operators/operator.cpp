#include "operators/operator.h"

#include <map>

namespace fggp {

const Operator *find_operator(const std::string &name) {
    static const std::map<std::string, const Operator *> known = [] {
        std::map<std::string, const Operator *> found;
        for (auto *operators : {&ELEMENTWISE_OPERATORS, &REDUCTION_OPERATORS, &NORM_OPERATORS, &ARRANGING_OPERATORS,
                                &PERMUTE_OPERATORS, &MOVEMENT_OPERATORS, &POOLING_OPERATORS, &RESIZE_OPERATORS,
                                &PRODUCT_OPERATORS, &CONVOLUTION_OPERATORS, &TRANSPOSED_OPERATORS,
                                &RECURRENT_OPERATORS, &QUANTIZED_OPERATORS})
            for (auto &one : *operators) found.emplace(one.name, &one);
        return found;
    }();
    auto found = known.find(name);
    return found == known.end() ? nullptr : found->second;
}

std::vector<TensorType> inferred(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    const Operator &op = *find_operator(node.op);
    auto check = [&](const TensorType &type, const char *what) {
        if (!op.quantized && (type.type == Type::U8 || type.type == Type::I8))
            node.refuse(std::string(what) + " is " + text_of(type) + ", which only quantised operations have");
    };
    for (auto *input : inputs)
        if (input) check(*input, "something that it reads");
    auto made = op.infer(node, inputs, sizes);
    if (made.size() != node.outputs.size())
        node.refuse("it has " + std::to_string(node.outputs.size()) + " outputs, not " + std::to_string(made.size()));
    for (auto &type : made) {
        check(type, "its result");
        type.count(); /* refuses what is too large */
    }
    return made;
}

} // namespace fggp
