#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> POOLING_OPERATORS = {};
} // namespace fggp
