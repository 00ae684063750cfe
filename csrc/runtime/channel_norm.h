/* Norms over the channels of each pixel: layer norms of tensors whose channels come last. */
#ifndef FGGP_CHANNEL_NORM_H
#define FGGP_CHANNEL_NORM_H

#include "runtime/kernels.h"
#include "runtime/operation.h"

namespace fggp {
/* out = (in - mean) / √(variance + epsilon) · weight + bias, where weight and bias have a number for each channel, or are
 * NULL. centred: false for no mean: then the variance is the mean square. `out` may be `in` if its rows have no padding
 * between them. */
Operation *new_channel_norm(const fggp_tensor &in, const fggp_tensor &out, const float *weight, const float *bias,
                            float epsilon, bool centred);
} // namespace fggp
#endif
