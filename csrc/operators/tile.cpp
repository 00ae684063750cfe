#include "operators/tile.h"

#include <algorithm>

namespace fggp {
namespace {

template <int R, int C>
void tile(int64_t depth, const float *a, const float *const *b, const int64_t *places, float *const *out, int64_t out_row,
          bool add) {
    /* With few sums, each addition would wait for the previous one; so several depths at once have their own sums. */
    constexpr int CHAINS = R * C >= 8 ? 1 : R * C >= 4 ? 2 : R * C >= 2 ? 4 : 8;
    vec sums[CHAINS][R][C] = {};
    const float *from[C];
    for (int c = 0; c < C; c++) from[c] = b[c];
    int64_t k = 0;
    for (; k + CHAINS <= depth; k += CHAINS) {
#pragma GCC unroll 8
        for (int chain = 0; chain < CHAINS; chain++) {
            const int64_t place = places[k + chain];
            vec values[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) values[c] = load(from[c] + place);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                vec factor = splat(a[r]);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[chain][r][c] += factor * values[c];
            }
            a += R;
        }
    }
    if constexpr (CHAINS > 1) {
        for (; k < depth; k++, a += R)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] += splat(a[r]) * load(from[c] + places[k]);
#pragma GCC unroll 8
        for (int chain = 1; chain < CHAINS; chain++)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] += sums[chain][r][c];
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
        float *to = out[c];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++, to += out_row) store(to, add ? sums[0][r][c] + load(to) : sums[0][r][c]);
    }
}

struct Tiles {
    Tile tiles[TILE_ROWS][TILE_VECTORS];
    template <int R, int... C> constexpr void fill_row(std::integer_sequence<int, C...>) {
        ((tiles[R][C] = &tile<R + 1, C + 1>), ...);
    }
    template <int... R> constexpr Tiles(std::integer_sequence<int, R...>) : tiles() {
        (fill_row<R>(std::make_integer_sequence<int, TILE_VECTORS>()), ...);
    }
};
constexpr Tiles TILES{std::make_integer_sequence<int, TILE_ROWS>()};

} // namespace

Tile tile_of(int64_t rows, int64_t vectors) { return TILES.tiles[rows - 1][vectors - 1]; }

vec load_part(const float *p, int64_t count) {
    float all[LANES] = {};
    std::copy(p, p + count, all);
    return load(all);
}
void store_part(float *p, vec v, int64_t count) {
    float all[LANES];
    store(all, v);
    std::copy(all, all + count, p);
}

void run_tile(const PanelVectors &vectors, int64_t rows, int64_t depth, const float *a, const int64_t *places, int64_t out_row,
              bool add) {
    const Tile tile = tile_of(rows, vectors.count);
    if (std::all_of(vectors.floats, vectors.floats + vectors.count, [](int64_t floats) { return floats >= LANES; }))
        return tile(depth, a, vectors.b, places, vectors.out, out_row, add);
    constexpr int64_t ROW = TILE_VECTORS * LANES;
    float sums[TILE_ROWS * ROW], *to[TILE_VECTORS];
    for (int64_t c = 0; c < vectors.count; c++) to[c] = sums + c * LANES;
    tile(depth, a, vectors.b, places, to, ROW, false);
    for (int64_t c = 0; c < vectors.count; c++)
        for (int64_t r = 0; r < rows; r++) {
            float *out = vectors.out[c] + r * out_row;
            vec sum = load(to[c] + r * ROW);
            if (add) sum += load_up_to(out, vectors.floats[c]);
            store_up_to(out, sum, vectors.floats[c]);
        }
}

} // namespace fggp
