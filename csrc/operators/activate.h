/* A node's activation, applied to a part of its result while that is in the cache. */
#ifndef FGGP_OPERATORS_ACTIVATE_H
#define FGGP_OPERATORS_ACTIVATE_H

#include "runtime/activations.h"
#include "runtime/functions.h"

namespace fggp {

inline void activate(const Activation &activation, float *data, int64_t floats) {
    if (activation.clamps) in_float(data, floats, [&](vec v) { return activation.clamped(v); }, data);
    if (activation.follows) activation.apply(data, floats, nullptr);
}

} // namespace fggp
#endif
