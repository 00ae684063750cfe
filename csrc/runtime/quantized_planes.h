/* Operations on U8 in the kernels' layout, block by block: pools, sums, means and conversions. */
#ifndef FGGP_QUANTIZED_PLANES_H
#define FGGP_QUANTIZED_PLANES_H

#include "runtime/kernels.h"
#include "runtime/operation.h"
#include "runtime/quantization.h"

namespace fggp {

/* From floats to U8, and back. */
Operation *new_quantize(const fggp_tensor &in, const fggp_tensor &out, const Quantization &);
Operation *new_dequantize(const fggp_tensor &in, const fggp_tensor &out, const Quantization &);
Operation *new_quantized_max_pool(const fggp_pool &);
/* out = clamp(a + b, low, high) as U8. out may be a or b. */
struct QuantizedSum {
    Quantization a, b, out;
    float low, high;
};
Operation *new_quantized_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out, const QuantizedSum &);
/* The means of planes, as floats. */
Operation *new_quantized_mean(const fggp_tensor &in, const fggp_tensor &out, const Quantization &);
/* Turn pixels into channels. channels: of `in`, not in blocks. */
Operation *new_quantized_flatten(const fggp_tensor &in, const fggp_tensor &out, int64_t channels);

/* Between a tensor of bytes and the kernels' layout, as new_load and new_store in transfers.h. channels: not in blocks. */
Operation *new_load_bytes(int32_t slot, const fggp_strides &, const fggp_tensor &out, int32_t images, int64_t channels);
Operation *new_store_bytes(const fggp_tensor &in, int32_t slot, const fggp_strides &, int32_t images, int64_t channels);

} // namespace fggp
#endif
