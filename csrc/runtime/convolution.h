/* Sparse convolutions, and products of sparse matrices with single vectors. */
#ifndef FGGP_CONVOLUTION_H
#define FGGP_CONVOLUTION_H

#include "runtime/operation.h"

namespace fggp {
Operation *new_convolution(const fggp_conv *chain, int length);
Operation *new_product(const fggp_conv &);
} // namespace fggp
#endif
