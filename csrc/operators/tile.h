/* The sums of a tile of a product of matrices, in registers. */
#ifndef FGGP_OPERATORS_TILE_H
#define FGGP_OPERATORS_TILE_H

#include "vectors.h"

namespace fggp {

/* The sums of the largest tile: TILE_ROWS × TILE_VECTORS vectors. Two to four further registers hold what is multiplied. */
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14, TILE_VECTORS = 2;
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 6, TILE_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int TILE_ROWS = 4, TILE_VECTORS = 4;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif

/* The product of a panel a of some rows and a panel b of some vectors: element (i, k) of a is a[k · rows + i], and vector
 * j of row k of b lies at b[j] + places[k]. The products are added to the output, or stored there: row i of vector j at
 * out[j] + i · out_row. */
typedef void (*Tile)(int64_t depth, const float *a, const float *const *b, const int64_t *places, float *const *out,
                     int64_t out_row, bool add);
/* The function for 1 to TILE_ROWS rows and 1 to TILE_VECTORS vectors. */
Tile tile_of(int64_t rows, int64_t vectors);

/* The first `count` floats, at most a vector of them. Fewer than a vector has are rare, so they are a call, which keeps
 * the code small. */
vec load_part(const float *p, int64_t count);
void store_part(float *p, vec v, int64_t count);
inline vec load_up_to(const float *p, int64_t count) { return count >= LANES ? load(p) : load_part(p, count); }
inline void store_up_to(float *p, vec v, int64_t count) { count >= LANES ? store(p, v) : store_part(p, v, count); }

/* The vectors of a panel of b whose products belong to so many floats of each row of the output. */
struct PanelVectors {
    int64_t count;
    const float *b[TILE_VECTORS];
    float *out[TILE_VECTORS];
    int64_t floats[TILE_VECTORS];
};
/* A tile whose vectors may stand out beyond the floats that they belong to. What stands out is left as it is. */
void run_tile(const PanelVectors &, int64_t rows, int64_t depth, const float *a, const int64_t *places, int64_t out_row, bool add);

} // namespace fggp
#endif
