#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> PRODUCT_OPERATORS = {};
} // namespace fggp
