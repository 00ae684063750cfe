/* What lowering asks of nodes. */
#ifndef FGGP_PLAN_NODES_H
#define FGGP_PLAN_NODES_H

#include "network/graph.h"

namespace fggp {

/* Kernels, strides, paddings and dilations from here on are left to the operators. */
constexpr int64_t ATTRIBUTE_LIMIT = 1024;

inline bool is(const Node &node, const char *op) { return node.op == op; }
inline bool is_conv(const Node &node) { return is(node, "conv") || is(node, "quantized_conv"); }
inline bool is_quantized_product(const Node &node) {
    return is(node, "quantized_conv") || is(node, "quantized_linear");
}
/* What stands for 0 in the input of a quantised product. */
inline int zero_of(const Node &node) { return (int)node.integer("zero"); }

} // namespace fggp
#endif
