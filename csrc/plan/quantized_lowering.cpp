/* Lowering operations that read or return U8. */
#include <algorithm>

#include "operators/quantized.h"
#include "plan/lowering.h"
#include "plan/nodes.h"
#include "runtime/quantized_planes.h"

namespace fggp {

/* The same for an operation that reads or returns U8. All its inputs are values, and can be read so. */
Lowering::Choice Lowering::quantized_choice(const Node &node, Kind kind) const {
    auto &in = types[node.inputs[0].value], &out = types[node.outputs[0]];
    auto like = [&](Native native, Kind out_kind) {
        return can_read(out.shape, out_kind) ? Choice{native, kind, out_kind, nullptr} : Choice{};
    };
    if (is(node, "quantize")) return like(Native::QUANTIZE, kind);
    if (is(node, "dequantize")) return like(Native::DEQUANTIZE, kind);
    if (is(node, "quantized_add")) return like(Native::SUM, kind);
    if (is(node, "concat") && node.dimension("dim", in.rank()) == channel_dimension(in.shape, kind)) {
        for (auto &operand : node.inputs) /* whole blocks are copied */
            if (types[operand.value].shape[channel_dimension(in.shape, kind)] % CHANNELS_PER_BLOCK) return {};
        return like(Native::COPY, kind);
    }
    if (kind != Kind::IMAGES) return {};
    if (is(node, "flatten") || (is(node, "reshape") && out.rank() == 2 && in.rank() > 2 && out.shape[0] == in.shape[0]))
        return like(image_sizes(in.shape, kind).pixels() == 1 ? Native::ALIAS : Native::FLATTEN, kind);
    if (in.rank() < 3) return {};
    if (is(node, "quantized_mean") && in.rank() < 5) return like(Native::ADAPTIVE_AVERAGE, kind);
    if (is(node, "max_pool")) {
        for (const char *key : {"kernel", "stride", "padding", "dilation"})
            for (int64_t number : node.integers(key))
                if (number >= ATTRIBUTE_LIMIT) return {};
        return like(Native::POOL, kind);
    }
    return {};
}

/* How a product reads what this node quantises, so that the kernels load it themselves; NONE: none does. */
Lowering::Choice Lowering::quantize_choice(const Node &node) const {
    auto reader = quantized_readers.find(node.outputs[0]);
    if (reader == quantized_readers.end() || node.inputs[0].value < 0) return {};
    const Kind kind = product_choice(*reader->second).in;
    return can_read(types[node.outputs[0]].shape, kind) ? Choice{Native::QUANTIZE, kind, kind, nullptr} : Choice{};
}

/* Whether a quantised convolution needs another number around its input than another one does. */
bool Lowering::other_padding(const Node &node) const {
    if (!is(node, "quantized_conv") || needs_unfolding(node)) return false;
    Window window = window_of(node);
    const int padding = activation(node.inputs[0].value, Kind::IMAGES).padding;
    return window.padding != Pair{0, 0} && padding >= 0 && padding != zero_of(node);
}

/* Operations that read or return U8, but for products. */
void Lowering::lower_quantized(const Node &node, const Choice &choice, const std::vector<int> &reads) {
    typedef const std::vector<fggp_tensor> &Read;
    typedef const fggp_tensor &Out;
    const int64_t channels = activation(node.inputs[0].value, choice.in).sizes.channels;
    switch (choice.native) {
    case Native::QUANTIZE:
    case Native::DEQUANTIZE: {
        auto make = choice.native == Native::QUANTIZE ? new_quantize : new_dequantize;
        Quantization is = quantization_of(node);
        return add_step(&node, reads, output_storage(node), [=](Read in, Out out) { return make(in[0], out, is); });
    }
    case Native::SUM: {
        Limits limits = limits_of(node);
        QuantizedSum is{quantization_of(node, "a_"), quantization_of(node, "b_"), quantization_of(node, "out_"), limits.low, limits.high};
        return add_step(&node, reads, output_storage(node, reads[0]),
                        [=](Read in, Out out) { return new_quantized_sum(in[0], in[1], out, is); });
    }
    case Native::ADAPTIVE_AVERAGE: {
        Quantization is = quantization_of(node);
        return add_step(&node, reads, output_storage(node), [=](Read in, Out out) { return new_quantized_mean(in[0], out, is); });
    }
    case Native::FLATTEN:
        return add_step(&node, reads, output_storage(node), [=](Read in, Out out) { return new_quantized_flatten(in[0], out, channels); });
    case Native::POOL: {
        Window window = window_of(node);
        return add_step(&node, reads, output_storage(node), [=](Read in, Out out) { return new_quantized_max_pool(pool_of(window, in[0], out)); });
    }
    default: return lower_copy(node, choice.in, reads);
    }
}

/* What a quantised product has besides its weight. */
void Lowering::quantize_product(const Node &node, Convolve &product) const {
    const int zero = zero_of(node);
    QuantizedNumbers numbers;
    auto *scale = (const float *)node.inputs[SCALE_INPUT].constant->dense();
    numbers.scale.assign(scale, scale + product.weight.outputs);
    for (int32_t sum : product.weight.sums()) numbers.first.push_back(-zero * sum);
    product.quantized = std::make_shared<QuantizedNumbers>(std::move(numbers));
    fggp_quantized &as = product.quantized_as;
    as.channels = (int32_t)product.weight.outputs;
    Limits limits = limits_of(node);
    as.low = limits.low, as.high = limits.high;
    as.plain_dot = graph.plan_setting("dot") == "plain";
    Quantization residual, out;
    if (product.residual >= 0) residual = quantization_of(node, "residual_");
    if (returns_bytes(node)) out = quantization_of(node, "out_");
    as.residual_scale = residual.scale, as.residual_zero = residual.zero;
    as.returns_bytes = returns_bytes(node);
    as.out_scale = out.scale, as.out_zero = out.zero;
}

} // namespace fggp
