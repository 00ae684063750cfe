/* Operations on whole numbers, on tensors in row-major order: plain loops, which the kernels (runtime/) are compared
 * with. */
#include "operators/quantized.h"

#include <algorithm>
#include <cmath>

#include "operators/convolution.h"
#include "operators/loop.h"

namespace fggp {

FGGP_ONCE Quantization quantization_of(const Node &node, const std::string &prefix) {
    constexpr float LEAST = 1e-30f, MOST = 1e30f; /* so that its inverse is as exact */
    const std::string scale_key = prefix + "scale", zero_key = prefix + "zero";
    const float scale = (float)node.number(scale_key.c_str());
    const int64_t zero = node.integer(zero_key.c_str());
    if (!(scale >= LEAST && scale <= MOST)) node.refuse("\"" + scale_key + "\" must be a positive number");
    if (zero < 0 || zero > 255) node.refuse("\"" + zero_key + "\" is " + std::to_string(zero) + ", and must be from 0 to 255");
    return {scale, (int32_t)zero};
}

FGGP_ONCE Limits limits_of(const Node &node) {
    const fggp_activation activation = node.activation();
    if (activation.kind == FGGP_IDENTITY) return {-INFINITY, INFINITY};
    if (activation.kind != FGGP_CLAMP) node.refuse("its activation must be \"clamp\"; others need an operation of their own");
    if (!(activation.a <= activation.b)) node.refuse("its activation's limits are in the wrong order");
    return {(float)activation.a, (float)activation.b};
}

namespace {

/* What becomes of a product's sums. */
struct Finish {
    const float *scale, *bias; /* for each channel; bias NULL: none */
    const uint8_t *residual;   /* of the output's shape; NULL: none */
    Quantization residual_is;
    Limits limits;
    Quantizer quantizer{Quantization()};
    uint8_t *bytes; /* one of them is the output */
    float *floats;

    void operator()(int64_t i, int64_t channel, int32_t sum) const {
        float y = (float)sum * scale[channel] + (bias ? bias[channel] : 0.0f);
        if (residual) y += residual_is.number(residual[i]);
        y = y < limits.low ? limits.low : y;
        y = y > limits.high ? limits.high : y;
        if (bytes) bytes[i] = (uint8_t)quantizer(y);
        else floats[i] = y;
    }
};

FGGP_ONCE Finish finish_of(const Node &node, const InputArrays &in, const Array &out) {
    Finish finish;
    finish.scale = in[SCALE_INPUT]->floats();
    auto *bias = optional(in, 2), *residual = optional(in, RESIDUAL_INPUT);
    finish.bias = bias ? bias->floats() : nullptr;
    finish.residual = residual ? residual->bools() : nullptr;
    if (residual) finish.residual_is = quantization_of(node, "residual_");
    finish.limits = limits_of(node);
    if (returns_bytes(node)) finish.quantizer = Quantizer(quantization_of(node, "out_"));
    finish.bytes = returns_bytes(node) ? (uint8_t *)out.data : nullptr;
    finish.floats = (float *)out.data;
    return finish;
}

/* Check what both products read, but for the shapes of x and the weight. Returns the type of the output. */
FGGP_ONCE TensorType checked_product(const Node &node, const InputTypes &in, int64_t depth, const Shape &out_shape, int64_t filters) {
    if (depth > QUANTIZED_DEPTH_MAX)
        node.refuse("each of its outputs reads " + std::to_string(depth) + " numbers, and " + std::to_string(QUANTIZED_DEPTH_MAX) + " are the most");
    quantization_of(node);
    check_floats(node, optional(in, 2), {filters}, "its bias");
    check_floats(node, in[SCALE_INPUT], {filters}, "its weight's scale");
    TensorType out{returns_bytes(node) ? Type::U8 : Type::F32, out_shape};
    if (returns_bytes(node)) quantization_of(node, "out_");
    if (auto *residual = optional(in, RESIDUAL_INPUT)) {
        TensorType right{Type::U8, out_shape};
        if (*residual != right) node.refuse("its residual is " + text_of(*residual) + "; it must be " + text_of(right));
        quantization_of(node, "residual_");
    }
    limits_of(node);
    return out;
}

FGGP_ONCE void check_product_inputs(const Node &node, const InputTypes &in) {
    check_inputs(node, in, 2, SCALE_INPUT + 1);
    if (in.size() <= SCALE_INPUT || !in[SCALE_INPUT]) node.refuse("it has no scale of its weight, the last of its inputs");
    check_type(node, *in[0], Type::U8, "its input");
    check_type(node, *in[1], Type::I8, "its weight");
}

FGGP_ONCE std::vector<TensorType> infer_linear(const Node &node, const InputTypes &in, const Sizes &) {
    check_product_inputs(node, in);
    const TensorType &x = *in[0], &weight = *in[1];
    if (weight.rank() != 2 || x.rank() < 1 || x.shape.back() != weight.shape[1])
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) +
                    ", and they must be […, I] and [O, I]");
    Shape shape = x.shape;
    shape.back() = weight.shape[0];
    return {checked_product(node, in, weight.shape[1], shape, weight.shape[0])};
}

FGGP_ONCE void make_linear(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                           Operations &operations) {
    const int64_t filters = in[1]->type.shape[0], depth = in[1]->type.shape[1];
    const uint8_t *x = in[0]->bools();
    auto *weight = (const int8_t *)in[1]->data;
    const int32_t zero = quantization_of(node).zero;
    const Finish finish = finish_of(node, in, out[0]);
    if (!out[0].type.count()) return;
    operations.push_back(loop(out[0].type.count(), depth, [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) {
            const uint8_t *from = x + i / filters * depth;
            const int8_t *row = weight + i % filters * depth;
            int32_t sum = 0;
            for (int64_t k = 0; k < depth; k++) sum += row[k] * (from[k] - zero);
            finish(i, i % filters, sum);
        }
    }));
}

FGGP_ONCE std::vector<TensorType> infer_conv(const Node &node, const InputTypes &in, const Sizes &) {
    check_product_inputs(node, in);
    const TensorType &x = *in[0], &weight = *in[1];
    check_sizes(node, x, weight);
    const Geometry g = checked_geometry(node, x, weight);
    return {checked_product(node, in, g.depth(), output_shape(g, x.rank()), g.filters)};
}

FGGP_ONCE void make_conv(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    Geometry g = geometry_of(node, in[0]->type, in[1]->type);
    for (int axis = 0; axis < AXES; axis++) g.out[axis] = outputs_of(g, axis);
    const uint8_t *x = in[0]->bools();
    auto *weight = (const int8_t *)in[1]->data;
    const int32_t zero = quantization_of(node).zero;
    const Finish finish = finish_of(node, in, out[0]);
    if (!out[0].type.count()) return;
    operations.push_back(loop(out[0].type.count(), g.depth(), [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) {
            const int64_t pixel = i % g.out_pixels(), filter = i / g.out_pixels() % g.filters;
            const int64_t image = i / g.out_pixels() / g.filters, channel = filter / g.group_filters() * g.group_channels();
            const int64_t at[AXES] = {pixel / g.out[2] / g.out[1], pixel / g.out[2] % g.out[1], pixel % g.out[2]};
            const uint8_t *plane = x + (image * g.channels + channel) * g.in_pixels();
            const int8_t *w = weight + filter * g.depth();
            int32_t sum = 0;
            for (int64_t c = 0; c < g.group_channels(); c++, plane += g.in_pixels())
                for (int64_t a = 0; a < g.kernel[0]; a++)
                    for (int64_t b = 0; b < g.kernel[1]; b++)
                        for (int64_t k = 0; k < g.kernel[2]; k++, w++) {
                            const int64_t p = g.input(0, at[0], a), q = g.input(1, at[1], b), r = g.input(2, at[2], k);
                            const bool inside = p >= 0 && p < g.in[0] && q >= 0 && q < g.in[1] && r >= 0 && r < g.in[2];
                            if (inside) sum += *w * (plane[(p * g.in[1] + q) * g.in[2] + r] - zero);
                        }
            finish(i, filter, sum);
        }
    }));
}

FGGP_ONCE std::vector<TensorType> infer_add(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 2, 2);
    check_type(node, *in[0], Type::U8, "its first input");
    if (*in[0] != *in[1]) node.refuse("its inputs are " + text_of(*in[0]) + " and " + text_of(*in[1]) + ", and must be alike");
    for (const char *prefix : {"a_", "b_", "out_"}) quantization_of(node, prefix);
    limits_of(node);
    return {*in[0]};
}

FGGP_ONCE void make_add(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                        Operations &operations) {
    const uint8_t *a = in[0]->bools(), *b = in[1]->bools();
    auto *to = (uint8_t *)out[0].data;
    const Quantization a_is = quantization_of(node, "a_"), b_is = quantization_of(node, "b_");
    const Limits limits = limits_of(node);
    const Quantizer quantizer(quantization_of(node, "out_"));
    operations.push_back(loop(out[0].type.count(), 1, [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) {
            float y = a_is.number(a[i]) + b_is.number(b[i]);
            y = y < limits.low ? limits.low : y;
            to[i] = (uint8_t)quantizer(y > limits.high ? limits.high : y);
        }
    }));
}

FGGP_ONCE std::vector<TensorType> infer_mean(const Node &node, const InputTypes &in, const Sizes &) {
    constexpr int64_t PIXELS_MAX = 1 << 22; /* whose sum fits 32 bits */
    check_inputs(node, in, 1, 1);
    check_type(node, *in[0], Type::U8, "its input");
    check_rank(node, *in[0], 3, "its input");
    const int64_t pixels = product(in[0]->shape, 2, in[0]->rank());
    if (pixels < 1 || pixels > PIXELS_MAX) node.refuse("its input is " + text_of(*in[0]) + ", and must have from 1 to " + std::to_string(PIXELS_MAX) + " pixels");
    quantization_of(node);
    TensorType out{Type::F32, Shape(in[0]->rank(), 1)};
    std::copy_n(in[0]->shape.begin(), 2, out.shape.begin());
    return {out};
}

FGGP_ONCE void make_mean(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    const uint8_t *x = in[0]->bools();
    auto *to = (float *)out[0].data;
    const int64_t pixels = product(in[0]->type.shape, 2, in[0]->type.rank());
    const Quantization is = quantization_of(node);
    const float scale = is.scale / (float)pixels;
    operations.push_back(loop(out[0].type.count(), pixels, [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) {
            int32_t sum = 0;
            for (int64_t p = 0; p < pixels; p++) sum += x[i * pixels + p] - is.zero;
            to[i] = (float)sum * scale;
        }
    }));
}

FGGP_ONCE std::vector<TensorType> infer_quantize(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 1, 1);
    check_type(node, *in[0], Type::F32, "its input");
    quantization_of(node);
    return {{Type::U8, in[0]->shape}};
}

FGGP_ONCE void make_quantize(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                             Operations &operations) {
    const float *x = in[0]->floats();
    auto *to = (uint8_t *)out[0].data;
    const Quantizer quantizer(quantization_of(node));
    operations.push_back(loop(out[0].type.count(), 1, [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) to[i] = (uint8_t)quantizer(x[i]);
    }));
}

FGGP_ONCE std::vector<TensorType> infer_dequantize(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 1, 1);
    check_type(node, *in[0], Type::U8, "its input");
    quantization_of(node);
    return {{Type::F32, in[0]->shape}};
}

FGGP_ONCE void make_dequantize(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                               Operations &operations) {
    const uint8_t *x = in[0]->bools();
    auto *to = (float *)out[0].data;
    const Quantization is = quantization_of(node);
    operations.push_back(loop(out[0].type.count(), 1, [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) to[i] = is.number(x[i]);
    }));
}

} // namespace

FGGP_ONCE void make_quantized_max_pool(const Node &node, const InputArrays &in, const Array &out, Operations &operations) {
    const TensorType &type = in[0]->type;
    const int spatial = type.rank() - 2, missing = AXES - spatial;
    Geometry g;
    for (int d = 0; d < spatial; d++) {
        g.in[missing + d] = type.shape[2 + d], g.out[missing + d] = out.type.shape[2 + d];
        g.kernel[missing + d] = node.integers("kernel")[d], g.stride[missing + d] = node.integers("stride")[d];
        g.padding[missing + d] = node.integers("padding")[d], g.dilation[missing + d] = node.integers("dilation")[d];
    }
    const uint8_t *x = in[0]->bools();
    auto *to = (uint8_t *)out.data;
    operations.push_back(loop(out.type.count(), g.taps(), [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) {
            const int64_t pixel = i % g.out_pixels();
            const int64_t at[AXES] = {pixel / g.out[2] / g.out[1], pixel / g.out[2] % g.out[1], pixel % g.out[2]};
            const uint8_t *plane = x + i / g.out_pixels() * g.in_pixels();
            uint8_t most = 0;
            for (int64_t a = 0; a < g.kernel[0]; a++)
                for (int64_t b = 0; b < g.kernel[1]; b++)
                    for (int64_t k = 0; k < g.kernel[2]; k++) {
                        const int64_t p = g.input(0, at[0], a), q = g.input(1, at[1], b), r = g.input(2, at[2], k);
                        const bool inside = p >= 0 && p < g.in[0] && q >= 0 && q < g.in[1] && r >= 0 && r < g.in[2];
                        if (inside) most = std::max(most, plane[(p * g.in[1] + q) * g.in[2] + r]);
                    }
            to[i] = most;
        }
    }));
}

const std::vector<Operator> QUANTIZED_OPERATORS = {
    {"quantize", infer_quantize, make_quantize, false, true},
    {"dequantize", infer_dequantize, make_dequantize, false, true},
    {"quantized_conv", infer_conv, make_conv, false, true},
    {"quantized_linear", infer_linear, make_linear, false, true},
    {"quantized_add", infer_add, make_add, false, true},
    {"quantized_mean", infer_mean, make_mean, false, true},
};

} // namespace fggp
