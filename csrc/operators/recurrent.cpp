#include "operators/operator.h"

namespace fggp {
const std::vector<Operator> RECURRENT_OPERATORS = {};
} // namespace fggp
