/* Copies between the caller's tensors and activations. */
#ifndef FGGP_TRANSFERS_H
#define FGGP_TRANSFERS_H

#include "runtime/kernels.h"
#include "runtime/operation.h"

namespace fggp {
/* Load from, and store to, the address in a slot. images: of the tensor, if they are fewer than those of a run. */
Operation *new_load(int32_t slot, const fggp_strides &, const fggp_tensor &out, int32_t images = INT32_MAX);
Operation *new_store(const fggp_tensor &in, int32_t slot, const fggp_strides &, int32_t images = INT32_MAX);
/* Copy bytes from the address in a slot. */
Operation *new_copy_in(int32_t slot, void *to, int64_t bytes);
} // namespace fggp
#endif
