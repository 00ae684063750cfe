/* Operations on numbers that are whole ones from 0 to 255, and weights from -128 to 127: what a node says of them. */
#ifndef FGGP_OPERATORS_QUANTIZED_H
#define FGGP_OPERATORS_QUANTIZED_H

#include "operators/inputs.h"
#include "runtime/quantization.h"

namespace fggp {

/* Where a product's tensors are among its inputs, after x, the weight and the bias. */
constexpr size_t RESIDUAL_INPUT = 3, SCALE_INPUT = 4;
/* Sums of more products may not fit 32 bits. */
constexpr int64_t QUANTIZED_DEPTH_MAX = 1 << 16;

/* The attributes "scale" and "zero" with this before their names, such as "out_". Throws Refused. */
Quantization quantization_of(const Node &, const std::string &prefix = "");
/* Whether a product or sum returns U8. */
inline bool returns_bytes(const Node &node) { return node.has("out_scale"); }
/* The limits of the activation, which is a clamp or none. Throws Refused: it is another one. */
struct Limits {
    float low, high;
};
Limits limits_of(const Node &);

/* The largest of each window of U8, for max_pool. */
void make_quantized_max_pool(const Node &, const InputArrays &, const Array &out, Operations &);

} // namespace fggp
#endif
