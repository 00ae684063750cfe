/* The convolution kernel: it keeps the sums of one tile of output pixels in registers while it reads the non-zero
 * weights of an output channel. */
#ifndef FGGP_TILES_H
#define FGGP_TILES_H

#include <utility>

#include "runtime/activations.h"
#include "runtime/kernels.h"
#include "vectors.h"

namespace fggp {

constexpr int MAX_ROWS = 4, MAX_COLUMNS = 8;
/* Convolutions with a stride are few, and the kernels take much room: there are none for higher tiles. */
constexpr int MAX_STRIDED_ROWS = 2;

/* The pixels of a tile: up to MAX_ROWS rows of `columns` vectors. The arrays hold each row's offset in floats. */
struct Tile {
    int32_t rows, columns;
    int64_t in[MAX_ROWS], out[MAX_ROWS], residual[MAX_ROWS];
    int64_t mask[MAX_ROWS];
};

/* The work on a tile: one chunk of input channels for the output channels from `begin` to before `end`. */
struct Job {
    const float *in, *residual; /* residual NULL: none */
    float *out, *scratch;
    const int32_t *mask; /* for each float of a plane: -1 if it is a pixel, 0 if it is padding; NULL: no padding */
    int64_t out_plane, residual_plane;
    const fggp_entry *entries;
    const uint32_t *starts;
    const float *bias;
    int32_t begin, end;
    bool prefetch;    /* fetch the next channel's output lines early, because each store would wait for its line */
    bool first, last; /* first chunk: start from the bias; last chunk: write the output */
    const Activation *activation;
    const fggp_quantized *quantized; /* as the convolution's */
};

/* STEP: the convolution's stride, which is the distance in vectors between the inputs of adjacent output columns. */
template <int R, int C, int STEP> void run_tile(const Job &job, const Tile &tile) {
    /* With few sums, each addition would wait for the previous one; so several weights at once have their own sums. */
    constexpr int CHAINS = R * C >= 8 ? 1 : R * C >= 4 ? 2 : R * C >= 2 ? 4 : 8;
    const char *in[R];
    for (int r = 0; r < R; r++) in[r] = (const char *)(job.in + tile.in[r]);
    const bool relu = job.activation->relu, clamps = job.activation->clamps && !relu;

    for (int channel = job.begin; channel < job.end; channel++) {
        const fggp_entry *entry = job.entries + job.starts[channel];
        const fggp_entry *end = job.entries + job.starts[channel + 1];
        if (job.last && job.prefetch) {
            const float *next = job.out + (channel + 1) * job.out_plane;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) __builtin_prefetch(next + tile.out[r] + c * LANES, 1, 3);
        }
        float *partial = job.scratch + (int64_t)(channel - job.begin) * (R * C * LANES);
        vec sums[CHAINS][R][C];
        if (job.first) {
            vec bias = splat(job.bias[channel]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] = bias;
        } else {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] = load(partial + (r * C + c) * LANES);
        }
        if (CHAINS > 1) {
#pragma GCC unroll 8
            for (int k = 1; k < CHAINS; k++)
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                    for (int c = 0; c < C; c++) sums[k][r][c] = vec{};
            for (; end - entry >= CHAINS; entry += CHAINS) {
#pragma GCC unroll 8
                for (int k = 0; k < CHAINS; k++) {
                    vec value = splat(entry[k].value);
                    int64_t offset = entry[k].offset;
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                        for (int c = 0; c < C; c++)
                            sums[k][r][c] += value * load((const float *)(in[r] + offset) + c * STEP * LANES);
                }
            }
        }
        for (; entry < end; entry++) {
            vec value = splat(entry->value);
            int64_t offset = entry->offset;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    sums[0][r][c] += value * load((const float *)(in[r] + offset) + c * STEP * LANES);
        }
        if (CHAINS > 1) {
#pragma GCC unroll 8
            for (int k = 1; k < CHAINS; k++)
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                    for (int c = 0; c < C; c++) sums[0][r][c] += sums[k][r][c];
        }
        if (!job.last) {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) store(partial + (r * C + c) * LANES, sums[0][r][c]);
            continue;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float *out = job.out + tile.out[r] + channel * job.out_plane;
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                vec sum = sums[0][r][c];
                if (job.residual)
                    sum += load(job.residual + tile.residual[r] + channel * job.residual_plane + c * LANES);
                if (relu) sum = sum < 0 ? vec{} : sum; /* keeps NaN */
                if (clamps) sum = job.activation->clamped(sum);
                if (job.mask) sum = (vec)((ivec)sum & *(const loose_ivec *)(job.mask + tile.mask[r] + c * LANES));
                store(out + c * LANES, sum);
            }
        }
        if (job.activation->follows) {
            float *out = job.out + channel * job.out_plane;
            bool adjoining = true; /* then one call for all rows */
            for (int r = 1; r < R; r++)
                adjoining = adjoining && tile.out[r] - tile.out[0] == r * C * LANES &&
                            (!job.mask || tile.mask[r] - tile.mask[0] == r * C * LANES);
            for (int r = 0; r < (adjoining ? 1 : R); r++)
                job.activation->apply(out + tile.out[r], (adjoining ? R : 1) * C * LANES,
                                 job.mask ? job.mask + tile.mask[r] : nullptr);
        }
    }
}

typedef void (*TileKernel)(const Job &, const Tile &);

/* The kernels for all tile shapes, Of<rows, columns, STEP>::run. Those whose sums do not fit the registers do not exist:
 * NULL. */
template <template <int, int, int> class Of> class TileKernels {
  public:
    static TileKernel find(int stride, int rows, int columns) {
        return find(((stride - 1) * MAX_ROWS + rows - 1) * MAX_COLUMNS + columns - 1,
                    std::make_integer_sequence<int, 2 * MAX_ROWS * MAX_COLUMNS>());
    }

  private:
    template <int... I> static TileKernel find(int index, std::integer_sequence<int, I...>) {
        static constexpr TileKernel ALL[] = {kernel<I>()...};
        return ALL[index];
    }
    template <int I> static constexpr TileKernel kernel() {
        constexpr int STEP = I / (MAX_ROWS * MAX_COLUMNS) + 1, R = I / MAX_COLUMNS % MAX_ROWS + 1, C = I % MAX_COLUMNS + 1;
        if constexpr (R * C <= REGISTERS && (STEP == 1 || R <= MAX_STRIDED_ROWS))
            return &Of<R, C, STEP>::run;
        else
            return nullptr;
    }
};

template <int R, int C, int STEP> struct FloatTile {
    static void run(const Job &job, const Tile &tile) { run_tile<R, C, STEP>(job, tile); }
};

} // namespace fggp
#endif
