#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> CONVOLUTION_OPERATORS = {};
} // namespace fggp
