#include "operators/gemm.h"

#include <algorithm>

namespace fggp {
namespace {

/* Floats of the blocks of a and of b, which fit the second-level cache. */
constexpr int64_t A_BLOCK = 96 * 1024, B_BLOCK = 96 * 1024;
constexpr int64_t UNPACKED_ROWS = TILE_ROWS; /* with up to this many rows, packing b does not pay */
constexpr int64_t DOT_ROWS = 8; /* with up to this many rows, packing b does not pay even if it must be transposed */

/* What follows the sums of some rows of a panel. */
__attribute__((noinline)) void finish(const Gemm &g, Interval rows, int64_t column, int64_t count) {
    const bool clamps = g.activation && g.activation->clamps;
    if (!g.row_bias && !g.column_bias && !g.residual && !clamps) return;
    for (int64_t c = 0; c < count; c += LANES) {
        const vec bias = g.column_bias ? load_up_to(g.column_bias + column + c, count - c) : vec{};
        for (int64_t row = rows.begin; row < rows.end; row++) {
            float *out = g.out + row * g.out_row + column + c;
            vec sum = load_up_to(out, count - c) + bias;
            if (g.row_bias) sum += splat(g.row_bias[row]);
            if (g.residual) sum += load_up_to(g.residual + row * g.residual_row + column + c, count - c);
            if (clamps) sum = g.activation->clamped(sum);
            store_up_to(out, sum, count - c);
        }
    }
}

void activate(const Gemm &g, Interval rows, Interval columns) {
    if (!g.activation || !g.activation->follows) return;
    for (int64_t i = rows.begin; i < rows.end; i++)
        g.activation->apply(g.out + i * g.out_row + columns.begin, columns.end - columns.begin, nullptr);
}

/* N scalar products of x with rows of b, whose elements adjoin. */
template <int N>
__attribute__((noinline)) void dot(const float *x, const float *b, int64_t b_column, int64_t depth, float *sums) {
    constexpr int CHAINS = N >= 8 ? 1 : 4;
    vec sum[N][CHAINS] = {};
    int64_t k = 0;
    for (; k + CHAINS * LANES <= depth; k += CHAINS * LANES)
#pragma GCC unroll 8
        for (int chain = 0; chain < CHAINS; chain++) {
            vec value = load(x + k + chain * LANES);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sum[n][chain] += value * load(b + n * b_column + k + chain * LANES);
        }
    for (; k < depth; k += LANES) {
        vec value = load_up_to(x + k, depth - k);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum[n][0] += value * load_up_to(b + n * b_column + k, depth - k);
    }
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 8
        for (int chain = 1; chain < CHAINS; chain++) sum[n][0] += sum[n][chain];
        float lanes[LANES];
        store(lanes, sum[n][0]);
        for (int half = LANES / 2; half; half /= 2)
            for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
        sums[n] = lanes[0];
    }
}

/* Few rows: each element of b is used few times, so it is read where it lies. */
void multiply_by_dots(const Gemm &g, Interval columns) {
    constexpr int N = LANES >= 8 ? 8 : 4;
    for (int64_t j = columns.begin; j < columns.end; j += N) {
        int64_t count = std::min<int64_t>(N, columns.end - j);
        for (int64_t i = 0; i < g.rows; i++) {
            const float *x = g.a.data + i * g.a.row, *b = g.b.data + j * g.b.column;
            float sums[N];
            if (count == N)
                dot<N>(x, b, g.b.column, g.depth, sums);
            else
                for (int64_t n = 0; n < count; n++) dot<1>(x, b + n * g.b.column, 0, g.depth, sums + n);
            for (int64_t n = 0; n < count; n++) {
                float sum = sums[n];
                if (g.row_bias) sum += g.row_bias[i];
                if (g.column_bias) sum += g.column_bias[j + n];
                if (g.residual) sum += g.residual[i * g.residual_row + j + n];
                if (g.activation && g.activation->clamps) sum = g.activation->clamped(splat(sum))[0];
                g.out[i * g.out_row + j + n] = sum;
            }
        }
    }
    activate(g, {0, g.rows}, columns);
}

/* C vectors of a row times b, which is read in pieces that are as long as possible. */
template <int C> __attribute__((noinline)) void row_times(const Gemm &g, int64_t column, int64_t count) {
    vec sums[C] = {};
    const float *x = g.a.data, *b = g.b.data + column;
    for (int64_t k = 0; k < g.depth; k++, x += g.a.column, b += g.b.row) {
        const vec factor = splat(*x);
#pragma GCC unroll 16
        for (int c = 0; c < C; c++) {
            if (C > 1 && k + AHEAD < g.depth) __builtin_prefetch(b + AHEAD * g.b.row + c * LANES);
            sums[c] += factor * (C > 1 ? load(b + c * LANES) : load_up_to(b, count));
        }
    }
    for (int c = 0; c < C; c++) store_up_to(g.out + column + c * LANES, sums[c], count - c * LANES);
}

void multiply_by_row(const Gemm &g, Interval columns) {
    constexpr int64_t MOST = REGISTERS * LANES;
    int64_t column = columns.begin;
    for (; column + MOST <= columns.end; column += MOST) row_times<REGISTERS>(g, column, MOST);
    for (; column < columns.end; column += LANES)
        row_times<1>(g, column, std::min<int64_t>(LANES, columns.end - column));
    finish(g, {0, 1}, columns.begin, columns.end - columns.begin);
    activate(g, {0, 1}, columns);
}

} // namespace

bool by_dots(const Gemm &g) {
    return !g.packed_a && !g.packed_b && !g.patches && g.a.column == 1 && g.b.row == 1 && g.rows <= DOT_ROWS;
}

bool by_row(const Gemm &g) { return g.rows == 1 && !g.packed_a && !g.packed_b && !g.patches && g.b.column == 1; }

void multiply_part(const Gemm &g, Interval row_panels, Interval column_panels, float *scratch) {
    const Interval columns = {column_panels.begin * PANEL, std::min(g.columns, column_panels.end * PANEL)};
    if (by_dots(g)) return multiply_by_dots(g, columns);
    if (by_row(g)) return multiply_by_row(g, columns);
    const int64_t panels = a_panels(g.rows), chunks = chunks_of(g.depth), most = up(g.depth, chunks_of(g.depth));
    const int64_t block_rows = std::max<int64_t>(1, A_BLOCK / (std::max<int64_t>(1, most) * TILE_ROWS));
    const int64_t block_columns = std::max<int64_t>(1, B_BLOCK / (std::max<int64_t>(1, most) * PANEL));
    const bool in_place = !g.packed_b && !g.patches && g.b.column == 1 && g.rows <= UNPACKED_ROWS;
    float *a_block = scratch;
    float *b_block = scratch + up(most * std::min(block_rows, panels) * TILE_ROWS + LANES, 16) * 16;
    int64_t places[DEPTH], b_row = -1; /* where the rows of b lie, if one lies b_row floats after the other */
    auto row_of = [&](int64_t panel) { return g.rows * panel / panels; };

    for (int64_t column_begin = column_panels.begin; column_begin < column_panels.end; column_begin += block_columns) {
        const int64_t column_end = std::min(column_begin + block_columns, column_panels.end);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const Range k(g.depth, chunk, chunks);
            const int64_t depth = k.end - k.begin;
            int64_t packed_to = column_begin * PANEL; /* columns */
            for (int64_t row_begin = row_panels.begin; row_begin < row_panels.end; row_begin += block_rows) {
                const int64_t row_end = std::min(row_begin + block_rows, row_panels.end);
                const int64_t first_row = row_of(row_begin);
                if (!g.packed_a)
                    for (int64_t panel = row_begin; panel < row_end; panel++) {
                        int64_t row = row_of(panel);
                        pack_rows({g.a.data + row * g.a.row + k.begin * g.a.column, g.a.row, g.a.column},
                                  row_of(panel + 1) - row, depth, a_block + (row - first_row) * depth);
                    }
                const float *a = g.packed_a ? g.packed_a + k.begin * g.rows + first_row * depth : a_block;

                for (int64_t j = column_begin; j < column_end; j++) {
                    const int64_t column = j * PANEL, count = std::min<int64_t>(PANEL, g.columns - column);
                    int64_t width = whole_vectors(count);
                    const float *b;
                    if (g.packed_b)
                        b = g.packed_b + k.begin * whole_vectors(g.columns) + column * depth;
                    else if (in_place && count == PANEL)
                        b = g.b.data + k.begin * g.b.row + column, width = g.b.row;
                    else {
                        float *packed = b_block + (column - column_begin * PANEL) * depth;
                        if (packed_to <= column && g.patches) {
                            g.patches->pack(g.batch, k.begin, k.end, column, count, width, packed);
                            packed_to = column + count;
                        } else if (packed_to <= column) {
                            const float *first = g.b.data + k.begin * g.b.row + column * g.b.column;
                            const int64_t end = std::min(column_end * PANEL, g.columns);
                            packed_to = column + pack_panels({first, g.b.row, g.b.column}, end - column, depth, packed);
                        }
                        b = packed;
                    }
                    if (width != b_row) /* nearly always as in the panel before */
                        for (int64_t n = 0; n < most; n++) places[n] = n * width;
                    b_row = width;
                    PanelVectors vectors{up(count, LANES), {}, {}, {}};
                    for (int64_t c = 0; c < vectors.count; c++) {
                        vectors.b[c] = b + c * LANES;
                        vectors.floats[c] = count - c * LANES;
                    }
                    for (int64_t i = row_begin; i < row_end; i++) {
                        const int64_t row = row_of(i), rows = row_of(i + 1) - row;
                        for (int64_t c = 0; c < vectors.count; c++)
                            vectors.out[c] = g.out + row * g.out_row + column + c * LANES;
                        run_tile(vectors, rows, depth, a + (row - first_row) * depth, places, g.out_row, chunk > 0);
                        if (chunk == chunks - 1) finish(g, {row, row + rows}, column, count);
                    }
                }
                if (chunk == chunks - 1)
                    activate(g, {first_row, row_of(row_end)},
                             {column_begin * PANEL, std::min(g.columns, column_end * PANEL)});
            }
        }
    }
}

int64_t gemm_scratch(int64_t rows, int64_t columns, int64_t depth) {
    int64_t most = std::max<int64_t>(1, std::min(depth, DEPTH));
    int64_t a = std::min(std::max<int64_t>(A_BLOCK, most * TILE_ROWS), most * a_panels(rows) * TILE_ROWS);
    int64_t b = std::min(std::max<int64_t>(B_BLOCK, most * PANEL), most * b_panels(columns) * PANEL);
    return up(a + LANES, 16) * 16 + b;
}

void multiply(const Gemm &g, float *scratch) {
    multiply_part(g, {0, a_panels(g.rows)}, {0, b_panels(g.columns)}, scratch);
}

} // namespace fggp
