/* Transposed convolutions. */
#include <algorithm>
#include <memory>
#include <vector>

#include "operators/activate.h"
#include "operators/convolution.h"
#include "operators/gemm.h"
#include "operators/loop.h"
#include "runtime/activations.h"

namespace fggp {
namespace {

/* The geometry of the convolution that a transposed one carries back: its input is the output here. */
FGGP_ONCE
Geometry transposed_geometry(const Node &node, const TensorType &x, const TensorType &weight) {
    Geometry g = geometry_of(node, x, weight);
    const int spatial = x.rank() - 2;
    const auto more = numbers_by_dimension(node, "output_padding", spatial, 0);
    std::swap(g.in, g.out);
    g.filters = g.channels;
    if (__builtin_mul_overflow(weight.shape[1], g.groups, &g.channels)) node.refuse("it has too many channels");
    for (int d = 0; d < spatial; d++) {
        const int axis = AXES - spatial + d;
        g.in[axis] = (g.out[axis] - 1) * g.stride[axis] - 2 * g.padding[axis] +
                     (g.kernel[axis] - 1) * g.dilation[axis] + 1 + more[d];
        if (more[d] >= std::max(g.stride[axis], g.dilation[axis]))
            node.refuse("\"output_padding\" has " + std::to_string(more[d]) +
                        ", and must be smaller than the stride or the dilation");
        if (g.in[axis] < 1) node.refuse("its output would have the size " + std::to_string(g.in[axis]));
    }
    return g;
}

FGGP_ONCE std::vector<TensorType> infer_conv_transpose(const Node &node, const InputTypes &in, const Sizes &) {
    check_convolution(node, in, 3);
    const TensorType &x = *in[0], &weight = *in[1];
    if (x.shape[1] != weight.shape[0])
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) +
                    "; the weight's first dimension must be the input's channels");
    const Geometry g = transposed_geometry(node, x, weight);
    check_bias(node, optional(in, 2), g.channels);
    TensorType out{Type::F32, {g.images, g.channels}};
    out.shape.insert(out.shape.end(), g.in.end() - (x.rank() - 2), g.in.end());
    out.count();
    return {out};
}

/* A piece of work is some output channels of an image: the product of their weights and the input says what each input
 * pixel adds at each position of the kernel, and this is added where it belongs. */
class Transposed {
  public:
    Transposed(const Geometry &g, const ConvolutionTensors &t)
        : g(g), t(t), activation(t.activation), packed(std::make_shared<std::vector<Packed>>()) {
        block = std::max<int64_t>(1, FLOATS / std::max<int64_t>(1, g.taps() * g.out_pixels()));
        block = std::min(block, g.group_channels());
        blocks = (g.group_channels() + block - 1) / block;
        if (t.constant_weight && g.group_filters())
            for (int64_t i = 0; i < g.groups * blocks; i++)
                packed->push_back(pack_a(weight(i / blocks, i % blocks * block), channels(i % blocks) * g.taps(),
                                         g.group_filters()));
    }
    int64_t pieces() const { return g.images * g.groups * blocks; }
    int64_t work() const { return (int64_t)std::min(1e9, (double)product_floats() * (double)(g.group_filters() + 1)); }
    int64_t scratch() const {
        return up(product_floats()) + gemm_scratch(block * g.taps(), g.out_pixels(), g.group_filters());
    }

    void operator()(const Range &range, const Call &, float *scratch) const {
        for (int64_t i = range.begin; i < range.end; i++) {
            const int64_t batch = i / blocks, group = batch % g.groups, first = i % blocks * block;
            Gemm gemm;
            gemm.rows = channels(i % blocks) * g.taps(), gemm.columns = g.out_pixels(), gemm.depth = g.group_filters();
            gemm.a = weight(group, first);
            if (!packed->empty()) gemm.packed_a = (*packed)[group * blocks + i % blocks].data();
            gemm.b = {t.x + batch * g.group_filters() * g.out_pixels(), g.out_pixels(), 1};
            gemm.out = scratch;
            gemm.out_row = g.out_pixels();
            multiply(gemm, scratch + up(product_floats()));
            for (int64_t c = 0; c < channels(i % blocks); c++) {
                const int64_t channel = first + c;
                float *plane = t.out + (batch * g.group_channels() + channel) * g.in_pixels();
                std::fill(plane, plane + g.in_pixels(), t.bias ? t.bias[group * g.group_channels() + channel] : 0.0f);
                for (int64_t tap = 0; tap < g.taps(); tap++)
                    add(plane, scratch + (c * g.taps() + tap) * g.out_pixels(), tap);
                activate(activation, plane, g.in_pixels());
            }
        }
    }

  private:
    static constexpr int64_t FLOATS = 1 << 18; /* of a product, or so; they fit the second-level cache */

    static int64_t up(int64_t floats) { return (floats + 15) / 16 * 16; }
    int64_t product_floats() const { return block * g.taps() * g.out_pixels(); }
    int64_t channels(int64_t i) const { return std::min(block, g.group_channels() - i * block); } /* of a block */
    Matrix weight(int64_t group, int64_t channel) const {
        const int64_t row = g.group_channels() * g.taps();
        return {t.weight + group * g.group_filters() * row + channel * g.taps(), 1, row};
    }

    /* Add what all input pixels add at one position of the kernel. */
    void add(float *plane, const float *from, int64_t tap) const {
        const int64_t kx = tap % g.kernel[2], ky = tap / g.kernel[2] % g.kernel[1];
        const int64_t kz = tap / g.kernel[2] / g.kernel[1];
        const int64_t step = g.stride[2], left = g.input(2, 0, kx);
        const int64_t first = left < 0 ? (-left + step - 1) / step : 0;
        const int64_t after = std::min(g.out[2], left < g.in[2] ? (g.in[2] - left + step - 1) / step : 0);
        for (int64_t z = 0; z < g.out[0]; z++)
            for (int64_t y = 0; y < g.out[1]; y++) {
                const int64_t to_z = g.input(0, z, kz), to_y = g.input(1, y, ky);
                if (to_z < 0 || to_z >= g.in[0] || to_y < 0 || to_y >= g.in[1]) continue;
                float *to = plane + (to_z * g.in[1] + to_y) * g.in[2] + left;
                const float *row = from + (z * g.out[1] + y) * g.out[2];
                if (step == 1)
                    for (int64_t x = first; x < after; x++) to[x] += row[x];
                else if (step == 2)
                    for (int64_t x = first; x < after; x++) to[2 * x] += row[x];
                else
                    for (int64_t x = first; x < after; x++) to[x * step] += row[x];
            }
    }

    Geometry g; /* of the convolution that is carried back */
    ConvolutionTensors t;
    Activation activation;
    int64_t block, blocks; /* output channels of a piece, and how many pieces a group has */
    std::shared_ptr<std::vector<Packed>> packed; /* the weights of each block of each group */
};

FGGP_ONCE void make_conv_transpose(const Node &node, const InputArrays &in, const std::vector<Array> &out,
                                   const Sizes &, Operations &operations) {
    if (!out[0].type.count()) return;
    const Transposed transposed(transposed_geometry(node, in[0]->type, in[1]->type), tensors_of(node, in, out[0]));
    operations.push_back(loop(transposed.pieces(), transposed.work(), transposed.scratch(), transposed));
}

} // namespace

const std::vector<Operator> TRANSPOSED_OPERATORS = {
    {"conv_transpose", infer_conv_transpose, make_conv_transpose},
};
} // namespace fggp
