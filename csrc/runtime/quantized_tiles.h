/* The convolution kernel for whole numbers, and what runs in its place where the output has one pixel. */
#ifndef FGGP_QUANTIZED_TILES_H
#define FGGP_QUANTIZED_TILES_H

#include "runtime/operation.h"
#include "runtime/tiles.h"

namespace fggp {

/* Channels in a block. */
constexpr int BLOCK = 4;

/* The kernel for a tile shape of a quantised convolution; job.quantized is set. stride: 1 or 2. */
TileKernel quantized_kernel(const fggp_quantized &, int stride, int rows, int columns);

/* A quantised product whose output has one pixel, for single images. */
Operation *new_quantized_product(const fggp_conv &);

} // namespace fggp
#endif
