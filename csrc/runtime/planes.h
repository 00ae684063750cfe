/* Operations that run plane by plane: pooling, sums, affine maps and copies. */
#ifndef FGGP_PLANES_H
#define FGGP_PLANES_H

#include "runtime/operation.h"

namespace fggp {
Operation *new_max_pool(const fggp_pool &);
Operation *new_average_pool(const fggp_pool &);
Operation *new_adaptive_average(const fggp_tensor &in, const fggp_tensor &out);
Operation *new_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out, const fggp_activation &);
Operation *new_gate(const fggp_tensor &in, const fggp_tensor &gate, const fggp_tensor &out, const fggp_activation &);
Operation *new_affine(const fggp_tensor &in, const fggp_tensor &out, const float *scale, const float *shift,
                      const fggp_activation &);
Operation *new_copy(const fggp_tensor &in, const fggp_tensor &out, const int32_t *pairs, int32_t count);
Operation *new_flatten(const fggp_tensor &in, const fggp_tensor &out);
Operation *new_unfold(const fggp_pool &);
} // namespace fggp
#endif
