#include <algorithm>
#include <vector>

#include "operators/activate.h"
#include "operators/convolution.h"
#include "operators/loop.h"
#include "operators/pixels.h"
#include "runtime/activations.h"
#include "vectors.h"

namespace fggp {
namespace {

/* A piece of work is a tile of one output plane. The input that it reads is copied to scratch memory with its padding,
 * so that the sums need not know where the image ends. */
class Depthwise {
  public:
    Depthwise(const Geometry &g, const ConvolutionTensors &t) : g(g), t(t), activation(t.activation) {
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
    ConvolutionTensors t;
    Activation activation;
    bool flat;
    int64_t rows, columns, row_tiles, column_tiles; /* of the output's tiles */
    int64_t in_rows, pitch, sums_pitch;
    std::vector<int64_t> offsets; /* of each position of the kernel in the tile */
};

} // namespace

bool is_depthwise(const Geometry &g) { return Depthwise::suits(g); }

FGGP_ONCE void make_depthwise(const Geometry &g, const ConvolutionTensors &t, Operations &operations) {
    Depthwise depthwise(g, t);
    operations.push_back(loop(depthwise.pieces(), depthwise.work(), depthwise.scratch(), depthwise));
}

} // namespace fggp
