/* Convolutions of single images with stride 2 and few weights, such as depthwise ones. */
#ifndef FGGP_STRIDED_H
#define FGGP_STRIDED_H

#include "runtime/kernels.h"
#include "runtime/operation.h"

namespace fggp {
/* A convolution of single images whose stride is 2 and whose chunks are 1. Reading its input with gaps is slower than
 * reading an unfolded one, but saves unfolding, which few weights do not pay for. After the last pixel that the output
 * depends on, 2 * LANES further floats may be read. */
Operation *new_strided(const fggp_conv &);
} // namespace fggp
#endif
