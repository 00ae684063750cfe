/* Convolutions of single images with stride 2 and few weights, such as depthwise ones. */
#ifndef FGGP_STRIDED_H
#define FGGP_STRIDED_H

#include "runtime/operation.h"

namespace fggp {
Operation *new_strided(const fggp_conv &);
} // namespace fggp
#endif
