#include "operators/operator.h"

#include <map>

namespace fggp {

const Operator *find_operator(const std::string &name) {
    static const std::map<std::string, const Operator *> known = [] {
        std::map<std::string, const Operator *> found;
        for (auto *operators : {&ELEMENTWISE_OPERATORS, &REDUCTION_OPERATORS, &NORM_OPERATORS, &ARRANGING_OPERATORS,
                                &PERMUTE_OPERATORS, &MOVEMENT_OPERATORS, &POOLING_OPERATORS, &RESIZE_OPERATORS,
                                &PRODUCT_OPERATORS, &CONVOLUTION_OPERATORS, &TRANSPOSED_OPERATORS,
                                &RECURRENT_OPERATORS})
            for (auto &one : *operators) found.emplace(one.name, &one);
        return found;
    }();
    auto found = known.find(name);
    return found == known.end() ? nullptr : found->second;
}

} // namespace fggp
