#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> RESIZE_OPERATORS = {};
} // namespace fggp
