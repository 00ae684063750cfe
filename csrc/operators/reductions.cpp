#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> REDUCTION_OPERATORS = {};
} // namespace fggp
