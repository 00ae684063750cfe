/* Matrices in the order in which the tiles of a product read them: in chunks of their depth, each in panels. */
#ifndef FGGP_OPERATORS_PACKING_H
#define FGGP_OPERATORS_PACKING_H

#include <algorithm>
#include <vector>

#include "operators/tile.h"
#include "runtime/operation.h"

namespace fggp {

/* How many pieces of a size cover so many. */
inline int64_t up(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Element (i, j) is data[i * row + j * column]. A transposed matrix has the two exchanged. */
struct Matrix {
    const float *data = nullptr;
    int64_t row = 0, column = 0;
    Matrix transposed() const { return {data, column, row}; }
};

constexpr int PANEL = TILE_VECTORS * LANES; /* columns of a panel of b */
constexpr int64_t DEPTH = 256;              /* the most rows of a panel of b: the panel fits the first-level cache */
constexpr int64_t AHEAD = 8;                /* rows of b that are fetched before they are read */

inline int64_t chunks_of(int64_t depth) { return std::max<int64_t>(1, up(depth, DEPTH)); }
inline int64_t a_panels(int64_t rows) { return up(rows, TILE_ROWS); }
inline int64_t b_panels(int64_t columns) { return up(columns, PANEL); }
inline int64_t whole_vectors(int64_t columns) { return up(columns, LANES) * LANES; }

/* How a is packed: in chunks of its depth, each in panels of about equally many rows, because a panel of few rows would not
 * use the processor well. A chunk of panels of b fits the first-level cache. */
struct Panels {
    int64_t rows, depth;
    int64_t chunks() const { return chunks_of(depth); }
    Range chunk(int64_t index) const { return {depth, index, chunks()}; }
    int64_t count() const { return a_panels(rows); }
    Range panel(int64_t index) const { return {rows, index, count()}; }
    /* Where a panel's part of a chunk begins. */
    int64_t place(const Range &chunk, const Range &panel) const {
        return chunk.begin * rows + panel.begin * (chunk.end - chunk.begin);
    }
};

/* Pack `rows` ≤ TILE_ROWS rows: element (i, k) to to[k * rows + i]. LANES floats after the last may be written. */
void pack_rows(const Matrix &a, int64_t rows, int64_t depth, float *to);
/* Pack the first panel of so many columns, or several if that is faster. Returns the number of columns packed. */
int64_t pack_panels(const Matrix &b, int64_t columns, int64_t depth, float *to);

/* A matrix whose elements do not change, packed once. It may be read by several threads. */
class Packed {
  public:
    Packed() = default;
    explicit Packed(int64_t floats);
    Packed(Packed &&) = default;
    Packed &operator=(Packed &&) = default;
    float *data() { return start; }
    const float *data() const { return start; } /* NULL: nothing is packed */

  private:
    std::vector<float> memory;
    float *start = nullptr; /* aligned to a vector */
};

Packed pack_a(const Matrix &a, int64_t rows, int64_t depth);
Packed pack_b(const Matrix &b, int64_t depth, int64_t columns);
/* The same into memory of the caller's, which should be aligned to a vector, and how many floats it needs. */
void pack_b(const Matrix &b, int64_t depth, int64_t columns, float *to);
int64_t packed_floats(int64_t depth, int64_t columns);

} // namespace fggp
#endif
