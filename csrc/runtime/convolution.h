/* Sparse convolutions, and products of sparse matrices with single vectors. */
#ifndef FGGP_CONVOLUTION_H
#define FGGP_CONVOLUTION_H

#include "runtime/kernels.h"
#include "runtime/operation.h"

namespace fggp {
/* A chain of convolutions. Each after the first is pointwise (1×1, stride 1) and reads the output of the one before it,
 * tile by tile, while the tile is in the caches. All use the tiles of the first. */
Operation *new_convolution(const fggp_conv *chain, int length);
/* out[n, o] = activation(Σ value · in[n, offset] + bias) for single images; in and out are rows of features. */
Operation *new_product(const fggp_conv &);
} // namespace fggp
#endif
