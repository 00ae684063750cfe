/* Dense convolutions of 1 to 3 spatial dimensions, as products of matrices: the weights by the patches that they read. */
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "operators/activate.h"
#include "operators/convolution.h"
#include "operators/gemm_operation.h"
#include "operators/loop.h"
#include "operators/pixels.h"
#include "runtime/activations.h"

namespace fggp {
namespace {

/* The patches as a matrix: a row for each channel and position of the kernel, a column for each output pixel. A batch
 * is an image's group. */
struct ConvolutionPatches final : Patches {
    Geometry g;
    const float *x;
    ConvolutionPatches(const Geometry &g, const float *x) : g(g), x(x) {}

    void pack(int64_t batch, int64_t begin, int64_t end, int64_t column, int64_t count, int64_t width,
              float *to) const override {
        constexpr int64_t MOST = 64;
        for (int64_t done = 0; done < count; done += MOST)
            pack_columns(batch, begin, end, column + done, std::min(MOST, count - done), width, to + done);
        if (count < width)
            for (int64_t k = 0; k < end - begin; k++) std::fill(to + k * width + count, to + (k + 1) * width, 0.0f);
    }

  private:
    struct Run { /* of output pixels in one row: the input pixel of the first one at the kernel's first position */
        int64_t z, y, x, count;
    };
    void pack_columns(int64_t batch, int64_t begin, int64_t end, int64_t column, int64_t count, int64_t width,
                      float *to) const {
        Run runs[64];
        int length = 0;
        for (int64_t i = column; i < column + count; length++) {
            const int64_t ox = i % g.out[2], oy = i / g.out[2] % g.out[1], oz = i / g.out[2] / g.out[1];
            const int64_t some = std::min(g.out[2] - ox, column + count - i);
            runs[length] = {g.input(0, oz, 0), g.input(1, oy, 0), g.input(2, ox, 0), some};
            i += some;
        }
        int64_t kx = begin % g.kernel[2], ky = begin / g.kernel[2] % g.kernel[1];
        int64_t kz = begin / g.kernel[2] / g.kernel[1] % g.kernel[0];
        const float *plane = x + (batch * g.group_channels() + begin / g.taps()) * g.in_pixels();
        for (int64_t k = begin; k < end; k++, to += width) {
            float *next = to;
            for (int i = 0; i < length; next += runs[i++].count) {
                const int64_t z = runs[i].z + kz * g.dilation[0], y = runs[i].y + ky * g.dilation[1];
                if ((uint64_t)z < (uint64_t)g.in[0] && (uint64_t)y < (uint64_t)g.in[1])
                    copy_pixels(next, plane + (z * g.in[1] + y) * g.in[2], runs[i].x + kx * g.dilation[2],
                                runs[i].count, g.stride[2], g.in[2]);
                else
                    std::fill(next, next + runs[i].count, 0.0f);
            }
            if (++kx < g.kernel[2]) continue;
            kx = 0;
            if (++ky < g.kernel[1]) continue;
            ky = 0;
            if (++kz < g.kernel[0]) continue;
            kz = 0;
            plane += g.in_pixels();
        }
    }
};

/* Whether an output pixel reads the input pixel at the same place and nothing else. */
bool pointwise(const Geometry &g) { return g.taps() == 1 && g.in == g.out && product(g.stride) == 1; }

/* Without groups: one product for each image. */
FGGP_ONCE
std::unique_ptr<Operation> whole_product(const Geometry &g, const ConvolutionTensors &t) {
    Gemm gemm;
    gemm.depth = g.depth();
    gemm.out = t.out;
    gemm.residual = t.residual;
    if (g.out_pixels() == 1 && g.kernel == g.in && g.padding == Sizes3{}) { /* each output reads all of the image */
        gemm.rows = g.images, gemm.columns = g.filters;
        gemm.a = {t.x, g.depth(), 1};
        gemm.b = {t.weight, 1, g.depth()};
        gemm.column_bias = t.bias;
        gemm.out_row = gemm.residual_row = g.filters;
        return new_gemm(gemm, false, t.constant_weight, t.activation);
    }
    gemm.rows = g.filters, gemm.columns = g.out_pixels();
    gemm.a = {t.weight, g.depth(), 1};
    gemm.row_bias = t.bias;
    gemm.out_row = gemm.residual_row = g.out_pixels();
    Batches batches;
    batches.sizes = {g.images};
    batches.out = batches.residual = {g.filters * g.out_pixels()};
    if (pointwise(g)) {
        gemm.b = {t.x, g.in_pixels(), 1};
        batches.b = {g.channels * g.in_pixels()};
        return new_gemm(gemm, t.constant_weight, false, t.activation, batches);
    }
    return new_gemm(gemm, t.constant_weight, false, t.activation, batches,
                    std::make_unique<ConvolutionPatches>(g, t.x));
}

/* With groups: a product for each image's group, and for a part of its columns. */
class GroupProducts final : public Operation {
  public:
    GroupProducts(const Geometry &g, const ConvolutionTensors &t) : g(g), t(t), activation(t.activation), patches(g, t.x) {
        if (t.constant_weight && g.depth())
            for (int64_t group = 0; group < g.groups; group++)
                packed.push_back(pack_a(weight(group), g.group_filters(), g.depth()));
        parts = (g.out_pixels() + COLUMNS - 1) / COLUMNS;
    }
    int tasks(int threads) const override {
        const double products = (double)g.images * g.filters * g.out_pixels() * std::max<int64_t>(1, g.depth());
        const double most = std::min({products / (1 << 15), 4.0 * threads, (double)(g.images * g.groups * parts)});
        return std::max(1, (int)most);
    }
    int64_t scratch() const override { return gemm_scratch(g.group_filters(), COLUMNS, g.depth()); }
    void run(int task, int tasks, const Call &, float *scratch) const override {
        const Range range(g.images * g.groups * parts, task, tasks);
        for (int64_t i = range.begin; i < range.end; i++) {
            const int64_t batch = i / parts, group = batch % g.groups, column = i % parts * COLUMNS;
            Gemm gemm;
            gemm.rows = g.group_filters(), gemm.columns = std::min(COLUMNS, g.out_pixels() - column);
            gemm.depth = g.depth();
            gemm.a = weight(group);
            if (!packed.empty()) gemm.packed_a = packed[group].data();
            const PartPatches part(patches, column);
            if (pointwise(g))
                gemm.b = {t.x + batch * g.group_channels() * g.in_pixels() + column, g.in_pixels(), 1};
            else
                gemm.patches = &part;
            gemm.batch = batch;
            const int64_t place = batch * g.group_filters() * g.out_pixels() + column;
            gemm.out = t.out + place;
            gemm.out_row = gemm.residual_row = g.out_pixels();
            if (t.bias) gemm.row_bias = t.bias + group * g.group_filters();
            if (t.residual) gemm.residual = t.residual + place;
            gemm.activation = &activation;
            multiply(gemm, scratch);
        }
    }

  private:
    static constexpr int64_t COLUMNS = 512;
    struct PartPatches final : Patches { /* the patches from a column on */
        const ConvolutionPatches &all;
        int64_t first;
        PartPatches(const ConvolutionPatches &all, int64_t first) : all(all), first(first) {}
        void pack(int64_t batch, int64_t begin, int64_t end, int64_t column, int64_t count, int64_t width,
                  float *to) const override {
            all.pack(batch, begin, end, first + column, count, width, to);
        }
    };
    Matrix weight(int64_t group) const {
        return {t.weight + group * g.group_filters() * g.depth(), g.depth(), 1};
    }

    Geometry g;
    ConvolutionTensors t;
    Activation activation;
    ConvolutionPatches patches;
    std::vector<Packed> packed;
    int64_t parts;
};

FGGP_ONCE std::vector<TensorType> infer_conv(const Node &node, const InputTypes &in, const Sizes &) {
    check_convolution(node, in, 4);
    const TensorType &x = *in[0], &weight = *in[1];
    const Geometry g = checked_geometry(node, x, weight);
    check_bias(node, optional(in, 2), g.filters);
    const TensorType out{Type::F32, output_shape(g, x.rank())};
    out.count();
    if (auto *residual = optional(in, 3); residual && *residual != out)
        node.refuse("its residual is " + text_of(*residual) + "; it must be " + text_of(out));
    return {out};
}

FGGP_ONCE void make_conv(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    if (!out[0].type.count()) return;
    Geometry g = geometry_of(node, in[0]->type, in[1]->type);
    for (int axis = 0; axis < AXES; axis++) g.out[axis] = outputs_of(g, axis);
    const ConvolutionTensors t = tensors_of(node, in, out[0]);
    if (is_depthwise(g))
        make_depthwise(g, t, operations);
    else if (is_direct(g, t))
        operations.push_back(make_direct(g, t));
    else if (g.groups == 1)
        operations.push_back(whole_product(g, t));
    else
        operations.push_back(std::make_unique<GroupProducts>(g, t));
}

} // namespace

const std::vector<Operator> CONVOLUTION_OPERATORS = {
    {"conv", infer_conv, make_conv},
};
} // namespace fggp
