/* Operations that run plane by plane: pooling, sums, affine maps and copies. */
#ifndef FGGP_PLANES_H
#define FGGP_PLANES_H

#include "runtime/kernels.h"
#include "runtime/operation.h"

namespace fggp {
Operation *new_max_pool(const fggp_pool &);
Operation *new_average_pool(const fggp_pool &);
/* Each output pixel is the mean of its part of the input; the parts are as even as possible. */
Operation *new_adaptive_average(const fggp_tensor &in, const fggp_tensor &out);
/* out = activation(a + b). */
Operation *new_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out, const fggp_activation &);
/* out = activation(in · gate), where gate has one pixel for each channel of each image. */
Operation *new_gate(const fggp_tensor &in, const fggp_tensor &gate, const fggp_tensor &out, const fggp_activation &);
/* out = activation(scale · in + shift), with a scale (NULL: 1) and a shift (NULL: 0) for each channel. */
Operation *new_affine(const fggp_tensor &in, const fggp_tensor &out, const float *scale, const float *shift,
                      const fggp_activation &);
/* Copy channels of `in` to channels of `out`: `count` pairs of numbers, from and to. same_padding: whether the padding of
 * both has the same bytes. */
Operation *new_copy(const fggp_tensor &in, const fggp_tensor &out, const int32_t *pairs, int32_t count,
                    bool same_padding);
/* Turn pixels into channels: out has in.channels * in.height * in.width channels of one pixel. */
Operation *new_flatten(const fggp_tensor &in, const fggp_tensor &out);
/* Make a channel for each input channel and kernel position: a convolution of the result has a 1×1 kernel. padding: each
 * byte of what stands outside of the image. */
Operation *new_unfold(const fggp_pool &, uint8_t padding = 0);
} // namespace fggp
#endif
