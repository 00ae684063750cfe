#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> ELEMENTWISE_OPERATORS = {};
} // namespace fggp
