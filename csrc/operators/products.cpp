#include "operators/gemm.h"
#include "operators/operator.h"

#include <algorithm>
#include <cmath>

namespace fggp {
namespace {

/* Refuses a node whose inputs are not from `least` to `most` tensors, of which the first `least` must be there, or not
 * F32. */
void check_inputs(const Node &node, const InputTypes &in, size_t least, size_t most) {
    if (in.size() < least || in.size() > most)
        node.refuse("it has " + std::to_string(in.size()) + " inputs, not " + std::to_string(least) + " to " +
                    std::to_string(most));
    for (size_t i = 0; i < in.size(); i++) {
        if (!in[i]) {
            if (i < least) node.refuse("its input " + std::to_string(i) + " is missing");
        } else if (in[i]->type != Type::F32)
            node.refuse("its input " + std::to_string(i) + " is " + name_of(in[i]->type) + ", not F32");
    }
}

template <class T> T *optional(const std::vector<T *> &in, size_t i) { return i < in.size() ? in[i] : nullptr; }
const float *optional_floats(const InputArrays &in, size_t i) {
    const Array *array = optional(in, i);
    return array ? array->floats() : nullptr;
}

std::vector<TensorType> infer_linear(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 2, 4);
    node.activation();
    const TensorType &x = *in[0], &weight = *in[1];
    if (weight.rank() != 2) node.refuse("its weight is " + text_of(weight) + "; it must have 2 dimensions");
    if (x.rank() < 1 || x.shape.back() != weight.shape[1])
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) +
                    "; their last dimensions must be equal");
    TensorType out = x;
    out.shape.back() = weight.shape[0];
    out.count();
    if (auto *bias = optional(in, 2); bias && bias->shape != Shape{weight.shape[0]})
        node.refuse("its bias is " + text_of(*bias) + "; it must be F32 " + text_of(Shape{weight.shape[0]}));
    if (auto *residual = optional(in, 3); residual && *residual != out)
        node.refuse("its residual is " + text_of(*residual) + "; it must be " + text_of(out));
    return {out};
}

void make_linear(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                 Operations &operations) {
    const Array &x = *in[0], &weight = *in[1];
    if (!out[0].type.count()) return;
    Gemm g;
    g.columns = weight.type.shape[0], g.depth = weight.type.shape[1];
    g.rows = out[0].type.count() / g.columns;
    g.a = {x.floats(), g.depth, 1};
    g.b = {weight.floats(), 1, g.depth};
    g.column_bias = optional_floats(in, 2);
    g.residual = optional_floats(in, 3);
    g.out = (float *)out[0].data;
    g.out_row = g.residual_row = g.columns;
    operations.push_back(new_gemm(g, x.constant, weight.constant, node.activation()));
}

/* Size `d` of the dimensions before the last two of the output, where tensors have fewer dimensions or are broadcast. */
int64_t leading(const TensorType &type, int rank, int d) {
    int own = d - (rank - type.rank());
    return own < 0 ? 1 : type.shape[own];
}

std::vector<TensorType> infer_matmul(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 2, 2);
    const TensorType &a = *in[0], &b = *in[1];
    auto refuse = [&](const char *why) { node.refuse("its inputs are " + text_of(a) + " and " + text_of(b) + "; " + why); };
    if (a.rank() < 2 || b.rank() < 2) refuse("they must have 2 or more dimensions");
    const bool ta = node.flag("transpose_a", false), tb = node.flag("transpose_b", false);
    const int rank = std::max(a.rank(), b.rank());
    if (a.shape[a.rank() - (ta ? 2 : 1)] != b.shape[b.rank() - (tb ? 1 : 2)])
        refuse("the dimension that is summed must be equal in both");
    TensorType out;
    for (int d = 0; d < rank - 2; d++) {
        const int64_t of_a = leading(a, rank, d), of_b = leading(b, rank, d);
        if (of_a != of_b && of_a != 1 && of_b != 1) refuse("the dimensions before the last two cannot be broadcast");
        out.shape.push_back(of_a == 1 ? of_b : of_a);
    }
    out.shape.push_back(a.shape[a.rank() - (ta ? 1 : 2)]);
    out.shape.push_back(b.shape[b.rank() - (tb ? 2 : 1)]);
    out.count();
    return {out};
}

/* The strides of the leading dimensions `sizes` of a tensor; 0 where it is broadcast. */
std::vector<int64_t> leading_strides(const TensorType &type, const Shape &sizes) {
    std::vector<int64_t> strides(sizes.size());
    const int rank = (int)sizes.size() + 2;
    int64_t stride = type.shape[type.rank() - 1] * type.shape[type.rank() - 2];
    for (int d = rank - 3; d >= 0; d--) {
        const int64_t size = leading(type, rank, d);
        strides[d] = size == 1 ? 0 : stride;
        stride *= size;
    }
    return strides;
}

void make_matmul(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                 Operations &operations) {
    const TensorType &a = in[0]->type, &b = in[1]->type, &c = out[0].type;
    if (!c.count()) return;
    const bool ta = node.flag("transpose_a", false), tb = node.flag("transpose_b", false);
    Gemm g;
    g.rows = c.shape[c.rank() - 2], g.columns = c.shape[c.rank() - 1];
    g.depth = a.shape[a.rank() - (ta ? 2 : 1)];
    g.a = {in[0]->floats(), a.shape.back(), 1};
    g.b = {in[1]->floats(), b.shape.back(), 1};
    if (ta) g.a = g.a.transposed();
    if (tb) g.b = g.b.transposed();
    g.out = (float *)out[0].data;
    g.out_row = g.columns;
    Batches all, merged;
    all.sizes.assign(c.shape.begin(), c.shape.end() - 2);
    all.a = leading_strides(a, all.sizes), all.b = leading_strides(b, all.sizes), all.out = leading_strides(c, all.sizes);
    /* Dimensions that are like one are merged. Then rows, if b is the same for all. */
    for (size_t d = all.sizes.size(); d-- > 0;) {
        const int64_t size = all.sizes[d];
        if (size == 1) continue;
        if (!merged.sizes.empty()) {
            const int64_t inner = merged.sizes.back();
            if (all.a[d] == merged.a.back() * inner && all.b[d] == merged.b.back() * inner) {
                merged.sizes.back() *= size;
                continue;
            }
        }
        merged.sizes.push_back(size);
        merged.a.push_back(all.a[d]), merged.b.push_back(all.b[d]), merged.out.push_back(all.out[d]);
    }
    if (!merged.sizes.empty() && !ta && merged.b[0] == 0 && merged.a[0] == g.rows * g.depth) {
        g.rows *= merged.sizes[0];
        for (auto *list : {&merged.sizes, &merged.a, &merged.b, &merged.out}) list->erase(list->begin());
    }
    for (auto *list : {&merged.sizes, &merged.a, &merged.b, &merged.out}) std::reverse(list->begin(), list->end());
    auto none = [](const std::vector<int64_t> &strides) {
        return std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; });
    };
    if (none(merged.a)) merged.a.clear();
    if (none(merged.b)) merged.b.clear();
    operations.push_back(new_gemm(g, in[0]->constant, in[1]->constant, {FGGP_IDENTITY, 0, 0, 0}, merged));
}

} // namespace

const std::vector<Operator> PRODUCT_OPERATORS = {
    {"linear", infer_linear, make_linear},
    {"matmul", infer_matmul, make_matmul},
};

} // namespace fggp
