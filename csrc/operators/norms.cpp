#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> NORM_OPERATORS = {};
} // namespace fggp
