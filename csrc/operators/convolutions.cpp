/* Dense convolutions of 1 to 3 spatial dimensions, and transposed ones. */
#include <algorithm>
#include <array>
#include <memory>

#include "operators/activate.h"
#include "operators/gemm.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "runtime/activations.h"
#include "vectors.h"

namespace fggp {
namespace {

/* Planes, rows, columns. A dimension that a tensor lacks has size 1. */
constexpr int AXES = 3;
typedef std::array<int64_t, AXES> Sizes3;

int64_t product(const Sizes3 &sizes) { return sizes[0] * sizes[1] * sizes[2]; }

/* A convolution from `in` to `out` pixels, of `channels` to `filters` channels. A transposed one goes from `out` to
 * `in`: it is what carries the gradients of the other one back. */
struct Geometry {
    int64_t images = 0, groups = 1, channels = 0, filters = 0; /* channels and filters: of all groups */
    Sizes3 in = {1, 1, 1}, out = {1, 1, 1}, kernel = {1, 1, 1}, stride = {1, 1, 1}, dilation = {1, 1, 1}, padding = {};
    int64_t in_pixels() const { return product(in); }
    int64_t out_pixels() const { return product(out); }
    int64_t taps() const { return product(kernel); }
    int64_t group_channels() const { return channels / groups; }
    int64_t group_filters() const { return filters / groups; }
    int64_t depth() const { return group_channels() * taps(); } /* the inputs of an output */
    /* The input pixel that an output pixel reads at a position of the kernel; it may be outside of the image. */
    int64_t input(int axis, int64_t output, int64_t tap) const {
        return output * stride[axis] - padding[axis] + tap * dilation[axis];
    }
};

const float *optional_floats(const InputArrays &in, size_t i) {
    const Array *array = optional(in, i);
    return array ? array->floats() : nullptr;
}

/* What a node's attributes say, for an input and a weight of those types; all but the sizes of the output. */
FGGP_ONCE
Geometry geometry_of(const Node &node, const TensorType &x, const TensorType &weight) {
    const int spatial = x.rank() - 2, missing = AXES - spatial;
    const auto stride = numbers_by_dimension(node, "stride", spatial, 1);
    const auto padding = numbers_by_dimension(node, "padding", spatial, 0);
    const auto dilation = numbers_by_dimension(node, "dilation", spatial, 1);
    Geometry g;
    g.images = x.shape[0], g.channels = x.shape[1];
    g.groups = node.integer("groups");
    g.filters = weight.shape[0];
    for (int d = 0; d < spatial; d++) {
        g.in[missing + d] = x.shape[2 + d];
        g.kernel[missing + d] = weight.shape[2 + d];
        g.stride[missing + d] = stride[d], g.padding[missing + d] = padding[d], g.dilation[missing + d] = dilation[d];
    }
    return g;
}

/* Checks what both kinds of convolutions have in common. */
FGGP_ONCE
void check_convolution(const Node &node, const InputTypes &in, size_t most) {
    check_inputs(node, in, 2, most);
    static const char *const NAMES[] = {"its input", "its weight", "its bias", "its residual"};
    for (size_t i = 0; i < in.size(); i++)
        if (in[i]) check_type(node, *in[i], Type::F32, NAMES[i]);
    const TensorType &x = *in[0], &weight = *in[1];
    if (x.rank() < 3 || x.rank() > 2 + AXES) node.refuse(text_of(x) + " does not have 3 to 5 dimensions");
    if (weight.rank() != x.rank())
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) +
                    "; they must have as many dimensions");
    for (int d = 2; d < x.rank(); d++) {
        if (x.shape[d] < 1 || x.shape[d] > INT32_MAX) node.refuse(text_of(x) + " has a dimension of a wrong size");
        if (weight.shape[d] < 1 || weight.shape[d] > (1 << 30))
            node.refuse("its weight is " + text_of(weight) + ", which has a dimension of a wrong size");
    }
    const int64_t groups = node.integer("groups");
    if (groups < 1 || x.shape[1] % groups || weight.shape[0] % groups)
        node.refuse("\"groups\" is " + std::to_string(groups) + ", and must divide the channels of its input, " +
                    text_of(x) + ", and the first dimension of its weight, " + text_of(weight));
    node.activation();
}

FGGP_ONCE
void check_bias(const Node &node, const TensorType *bias, int64_t filters) {
    if (bias && bias->shape != Shape{filters})
        node.refuse("its bias is " + text_of(*bias) + "; it must be F32 " + text_of(Shape{filters}));
}

/* The sizes of the output along an axis; less than 1: the kernel is larger than the padded input. */
int64_t outputs_of(const Geometry &g, int axis) {
    const int64_t room = g.in[axis] + 2 * g.padding[axis] - (g.kernel[axis] - 1) * g.dilation[axis] - 1;
    return room < 0 ? 0 : room / g.stride[axis] + 1;
}

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_conv(const Node &node, const InputTypes &in, const Sizes &) {
    check_convolution(node, in, 4);
    const TensorType &x = *in[0], &weight = *in[1];
    const Geometry g = geometry_of(node, x, weight);
    if (weight.shape[1] != g.group_channels())
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) + "; with " +
                    std::to_string(g.groups) + " groups, the weight's second dimension must be " +
                    std::to_string(g.group_channels()));
    check_bias(node, optional(in, 2), g.filters);
    TensorType out{Type::F32, {g.images, g.filters}};
    for (int axis = AXES - (x.rank() - 2); axis < AXES; axis++) {
        out.shape.push_back(outputs_of(g, axis));
        if (out.shape.back() < 1)
            node.refuse("its kernel, " + std::to_string((g.kernel[axis] - 1) * g.dilation[axis] + 1) +
                        " wide, is larger than its padded input, which is " +
                        std::to_string(g.in[axis] + 2 * g.padding[axis]));
    }
    out.count();
    if (auto *residual = optional(in, 3); residual && *residual != out)
        node.refuse("its residual is " + text_of(*residual) + "; it must be " + text_of(out));
    return {out};
}

/* ---- Convolutions as products: the weights by the patches that they read. */

/* Every second of 2 · LANES - 1 floats. */
template <int... I> vec load_every_second_exactly(const float *p, std::integer_sequence<int, I...>) {
    const vec a = load(p), b = load(p + LANES - 1);
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (2 * I + (I >= LANES / 2))...);
#else
    return __builtin_shuffle(a, b, ivec{(2 * I + (I >= LANES / 2))...});
#endif
}

/* Copy every `step`-th of the floats from `from` on; no float after the last one is read. */
void copy_strided(float *to, const float *from, int64_t count, int64_t step) {
    if (step == 1) {
        for (; count >= LANES; count -= LANES, to += LANES, from += LANES) store(to, load(from));
        return copy_pieces<LANES / 2>(to, from, count);
    }
    if (step == 2)
        for (; count >= LANES; count -= LANES, to += LANES, from += 2 * LANES)
            store(to, load_every_second_exactly(from, std::make_integer_sequence<int, LANES>()));
    for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
}

/* Copy `count` pixels of a row of `width` pixels: those at x, x + step, … They are zero outside of the row. */
void copy_pixels(float *to, const float *row, int64_t x, int64_t count, int64_t step, int64_t width) {
    if (x >= 0 && x + (count - 1) * step < width) return copy_strided(to, row + x, count, step);
    auto steps = [&](int64_t pixels) { /* divided and rounded up; dividing by 1 or 2 would take long */
        return pixels <= 0 ? 0 : step <= 2 ? (pixels + step - 1) >> (step - 1) : (pixels + step - 1) / step;
    };
    const int64_t first = std::min(count, steps(-x));
    const int64_t after = std::max(first, std::min(count, steps(width - x)));
    std::fill(to, to + first, 0.0f);
    if (first < after) copy_strided(to + first, row + x + first * step, after - first, step);
    std::fill(to + after, to + count, 0.0f);
}

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

/* What a convolution reads and writes besides its input. */
struct Tensors {
    const float *x, *weight, *bias, *residual;
    float *out;
    fggp_activation activation;
    bool constant_weight;
};

/* Whether an output pixel reads the input pixel at the same place and nothing else. */
bool pointwise(const Geometry &g) { return g.taps() == 1 && g.in == g.out && product(g.stride) == 1; }

/* Without groups: one product for each image. */
FGGP_ONCE
std::unique_ptr<Operation> whole_product(const Geometry &g, const Tensors &t) {
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
    GroupProducts(const Geometry &g, const Tensors &t) : g(g), t(t), activation(t.activation), patches(g, t.x) {
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
    Tensors t;
    Activation activation;
    ConvolutionPatches patches;
    std::vector<Packed> packed;
    int64_t parts;
};

/* ---- Depthwise convolutions: each output channel reads one input channel. */

/* A piece of work is a tile of one output plane. The input that it reads is copied to scratch memory with its padding,
 * so that the sums need not know where the image ends. */
class Depthwise {
  public:
    Depthwise(const Geometry &g, const Tensors &t) : g(g), t(t), activation(t.activation) {
        columns = std::min<int64_t>(g.out[2], MOST_COLUMNS);
        pitch = (columns - 1) * g.stride[2] + (g.kernel[2] - 1) * g.dilation[2] + 1;
        /* With stride 1, the sums of all rows are one long row that has the padding between them, too. */
        flat = g.stride[1] == 1 && g.stride[2] == 1;
        sums_pitch = flat ? pitch : (columns + LANES - 1) / LANES * LANES;
        const int64_t wanted = TILE / (pitch * g.kernel[0]) - (g.kernel[1] - 1) * g.dilation[1];
        rows = std::min(g.out[1], std::max<int64_t>(8, wanted / g.stride[1]));
        in_rows = (rows - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1;
        for (int64_t z = 0; z < g.kernel[0]; z++)
            for (int64_t y = 0; y < g.kernel[1]; y++)
                for (int64_t x = 0; x < g.kernel[2]; x++)
                    offsets.push_back((z * in_rows + y * g.dilation[1]) * pitch + x * g.dilation[2]);
        row_tiles = (g.out[1] + rows - 1) / rows, column_tiles = (g.out[2] + columns - 1) / columns;
    }
    /* Whether the scratch memory has a reasonable size. */
    static bool suits(const Geometry &g) {
        if (g.groups == 1 || g.group_channels() != 1 || g.group_filters() > 4) return false;
        double floats = (double)g.kernel[0];
        for (int axis = 1; axis < AXES; axis++) {
            const int64_t outputs = std::min<int64_t>(g.out[axis], axis == 1 ? 8 : MOST_COLUMNS);
            floats *= (double)(outputs * g.stride[axis] + g.kernel[axis] * g.dilation[axis]);
        }
        return floats < (1 << 20);
    }
    int64_t pieces() const { return g.images * g.filters * g.out[0] * row_tiles * column_tiles; }
    int64_t work() const { return rows * columns * g.taps(); }
    int64_t scratch() const { return tile_floats() + rows * sums_pitch + (UNROLL + 1) * LANES; }

    void operator()(const Range &range, const Call &, float *scratch) const {
        for (int64_t i = range.begin; i < range.end; i++) {
            int64_t rest = i;
            auto next = [&](int64_t size) {
                const int64_t index = rest % size;
                rest /= size;
                return index;
            };
            const int64_t x = next(column_tiles) * columns, y = next(row_tiles) * rows, z = next(g.out[0]);
            piece(rest, z, y, x, scratch);
        }
    }

  private:
    static constexpr int64_t MOST_COLUMNS = 1024;
    static constexpr int64_t TILE = 8192; /* floats of a tile's input, or so; they fit the first-level cache */
    static constexpr int UNROLL = REGISTERS >= 16 ? 8 : 4;

    int64_t tile_floats() const { return g.kernel[0] * in_rows * pitch + 2 * (UNROLL + 1) * LANES; }

    /* plane: of the output, in all images. */
    void piece(int64_t plane, int64_t z, int64_t y, int64_t x, float *tile) const {
        const int64_t high = std::min(rows, g.out[1] - y), wide = std::min(columns, g.out[2] - x);
        const int64_t filter = plane % g.filters;
        const float *from = t.x + plane / g.group_filters() * g.in_pixels();
        float *sums = tile + tile_floats();
        int64_t first = g.kernel[0], after = 0; /* the planes of the kernel that are within the image */
        for (int64_t k = 0; k < g.kernel[0]; k++) {
            const int64_t in_z = g.input(0, z, k);
            if (in_z < 0 || in_z >= g.in[0]) continue;
            first = std::min(first, k), after = k + 1;
            const int64_t used = (high - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1;
            for (int64_t i = 0; i < used; i++) {
                const int64_t in_y = g.input(1, y, 0) + i;
                float *to = tile + (k * in_rows + i) * pitch;
                if (in_y < 0 || in_y >= g.in[1])
                    std::fill(to, to + pitch, 0.0f);
                else
                    copy_pixels(to, from + (in_z * g.in[1] + in_y) * g.in[2], g.input(2, x, 0), pitch, 1, g.in[2]);
            }
        }
        const int64_t in_plane = g.kernel[1] * g.kernel[2];
        const Taps taps = {offsets.data() + first * in_plane, t.weight + filter * g.taps() + first * in_plane,
                           std::max<int64_t>(0, after - first) * in_plane, t.bias ? t.bias[filter] : 0};
        if (flat)
            sum<1>(taps, tile, sums, (high - 1) * pitch + wide);
        else
            for (int64_t i = 0; i < high; i++) {
                const float *row = tile + i * g.stride[1] * pitch;
                if (g.stride[2] == 1) sum<1>(taps, row, sums + i * sums_pitch, wide);
                else if (g.stride[2] == 2) sum<2>(taps, row, sums + i * sums_pitch, wide);
                else sum_strided(taps, row, sums + i * sums_pitch, wide);
            }
        const int64_t place = ((plane * g.out[0] + z) * g.out[1] + y) * g.out[2] + x;
        for (int64_t i = 0; i < high; i++) finish(sums + i * sums_pitch, place + i * g.out[2], wide);
        if (!activation.follows) return;
        if (wide == g.out[2]) activation.apply(t.out + place, high * wide, nullptr);
        else
            for (int64_t i = 0; i < high; i++) activation.apply(t.out + place + i * g.out[2], wide, nullptr);
    }

    struct Taps {
        const int64_t *offsets;
        const float *weights;
        int64_t count;
        float bias;
    };
    template <int STEP> void sum(const Taps &taps, const float *in, float *sums, int64_t count) const {
        int64_t i = 0;
        for (; count - i > (UNROLL / 2) * LANES; i += UNROLL * LANES)
            sum_vectors<UNROLL, STEP>(taps, in + i * STEP, sums + i);
        for (; count - i > LANES; i += 2 * LANES) sum_vectors<2, STEP>(taps, in + i * STEP, sums + i);
        if (i < count) sum_vectors<1, STEP>(taps, in + i * STEP, sums + i);
    }
    template <int N, int STEP> static void sum_vectors(const Taps &taps, const float *in, float *sums) {
        vec all[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) all[n] = splat(taps.bias);
        for (int64_t k = 0; k < taps.count; k++) {
            const vec weight = splat(taps.weights[k]);
            const float *from = in + taps.offsets[k];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++)
                all[n] += weight * (STEP == 1 ? load(from + n * LANES) : load_every_second(from + n * 2 * LANES));
        }
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store(sums + n * LANES, all[n]);
    }
    void sum_strided(const Taps &taps, const float *in, float *sums, int64_t count) const {
        for (int64_t i = 0; i < count; i++) {
            float all = taps.bias;
            for (int64_t k = 0; k < taps.count; k++) all += taps.weights[k] * in[taps.offsets[k] + i * g.stride[2]];
            sums[i] = all;
        }
    }
    /* Add the residual, clamp, and store part of a row. */
    void finish(float *sums, int64_t place, int64_t count) const {
        if (t.residual)
            for (int64_t i = 0; i < count; i++) sums[i] += t.residual[place + i];
        for (int64_t i = 0; i < count; i += LANES) {
            const vec v = load(sums + i);
            store_first(t.out + place + i, activation.clamps ? activation.clamped(v) : v, count - i);
        }
    }

    Geometry g;
    Tensors t;
    Activation activation;
    bool flat;
    int64_t rows, columns, row_tiles, column_tiles; /* of the output's tiles */
    int64_t in_rows, pitch, sums_pitch;
    std::vector<int64_t> offsets; /* of each position of the kernel in the tile */
};

FGGP_ONCE
Tensors tensors_of(const Node &node, const InputArrays &in, const Array &out) {
    return {in[0]->floats(),         in[1]->floats(),    optional_floats(in, 2), optional_floats(in, 3),
            (float *)out.data, node.activation(), in[1]->constant};
}

FGGP_ONCE
FGGP_ONCE void make_conv(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    if (!out[0].type.count()) return;
    Geometry g = geometry_of(node, in[0]->type, in[1]->type);
    for (int axis = 0; axis < AXES; axis++) g.out[axis] = outputs_of(g, axis);
    const Tensors t = tensors_of(node, in, out[0]);
    if (Depthwise::suits(g)) {
        Depthwise depthwise(g, t);
        operations.push_back(loop(depthwise.pieces(), depthwise.work(), depthwise.scratch(), depthwise));
    } else if (g.groups == 1)
        operations.push_back(whole_product(g, t));
    else
        operations.push_back(std::make_unique<GroupProducts>(g, t));
}

/* ---- Transposed convolutions. */

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

FGGP_ONCE
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
    Transposed(const Geometry &g, const Tensors &t)
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
    Tensors t;
    Activation activation;
    int64_t block, blocks; /* output channels of a piece, and how many pieces a group has */
    std::shared_ptr<std::vector<Packed>> packed; /* the weights of each block of each group */
};

FGGP_ONCE
FGGP_ONCE void make_conv_transpose(const Node &node, const InputArrays &in, const std::vector<Array> &out,
                                   const Sizes &, Operations &operations) {
    if (!out[0].type.count()) return;
    const Transposed transposed(transposed_geometry(node, in[0]->type, in[1]->type), tensors_of(node, in, out[0]));
    operations.push_back(loop(transposed.pieces(), transposed.work(), transposed.scratch(), transposed));
}

} // namespace

const std::vector<Operator> CONVOLUTION_OPERATORS = {
    {"conv", infer_conv, make_conv},
    {"conv_transpose", infer_conv_transpose, make_conv_transpose},
};
} // namespace fggp
