/* Copies between the caller's tensors and activations. */
#ifndef FGGP_TRANSFERS_H
#define FGGP_TRANSFERS_H

#include "runtime/operation.h"

namespace fggp {
Operation *new_load(int32_t slot, const fggp_strides &, const fggp_tensor &out);
Operation *new_store(const fggp_tensor &in, int32_t slot, const fggp_strides &);
} // namespace fggp
#endif
