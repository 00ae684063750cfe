#include "operators/packing.h"

#include <cstring>
#include <utility>

namespace fggp {
namespace {

static_assert(TILE_ROWS <= LANES, "pack_rows() stores the rows of a panel as one vector");

constexpr int64_t GROUP = 4; /* panels that are packed at once */

/* Exchanges lanes and vectors. */
template <int STEP, int... I> void exchange(vec &a, vec &b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    vec first = __builtin_shufflevector(a, b, ((I & STEP) ? LANES + I - STEP : I)...);
    vec second = __builtin_shufflevector(a, b, ((I & STEP) ? LANES + I : I + STEP)...);
#else
    vec first = __builtin_shuffle(a, b, ivec{((I & STEP) ? LANES + I - STEP : I)...});
    vec second = __builtin_shuffle(a, b, ivec{((I & STEP) ? LANES + I : I + STEP)...});
#endif
    a = first, b = second;
}
template <int STEP> inline void transpose(vec (&v)[LANES]) {
    if constexpr (STEP < LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & STEP)) exchange<STEP>(v[i], v[i + STEP], std::make_integer_sequence<int, LANES>());
        transpose<2 * STEP>(v);
    }
}

/* Pack `count` columns: element (k, j) to to[k * width + j], and zeros from `count` to `width`, whole vectors. */
void pack_columns(const Matrix &b, int64_t count, int64_t width, int64_t depth, float *to) {
    if (b.column == 1) {
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < width; j += LANES)
                store(to + k * width + j, load_up_to(b.data + k * b.row + j, std::max<int64_t>(0, count - j)));
        return;
    }
    for (int64_t j = 0; j < width; j += LANES) {
        int64_t some = std::min<int64_t>(LANES, count - j), k = 0;
        const float *from = b.data + j * b.column;
        if (b.row == 1) {
            for (; k + LANES <= depth; k += LANES) {
                vec v[LANES];
#pragma GCC unroll 16
                for (int i = 0; i < LANES; i++) v[i] = i < some ? load(from + i * b.column + k) : vec{};
                transpose<1>(v);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; i++) store(to + (k + i) * width + j, v[i]);
            }
        }
        for (; k < depth; k++)
            for (int64_t i = 0; i < LANES; i++)
                to[k * width + j + i] = i < some ? from[k * b.row + i * b.column] : 0;
    }
}

} // namespace

void pack_rows(const Matrix &a, int64_t rows, int64_t depth, float *to) {
    int64_t k = 0;
    if (a.column == 1) {
        for (; k + LANES <= depth; k += LANES) {
            vec v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) v[i] = i < rows ? load(a.data + i * a.row + k) : vec{};
            transpose<1>(v);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(to + (k + i) * rows, v[i]);
        }
    }
    if (a.row == 1) {
        for (; k < depth; k++) memcpy(to + k * rows, a.data + k * a.column, rows * sizeof(float));
    }
    for (; k < depth; k++)
        for (int64_t i = 0; i < rows; i++) to[k * rows + i] = a.data[i * a.row + k * a.column];
}

int64_t pack_panels(const Matrix &b, int64_t columns, int64_t depth, float *to) {
    const int64_t panels = std::min(GROUP, columns / PANEL);
    if (b.column != 1 || panels == 0) {
        const int64_t count = std::min<int64_t>(PANEL, columns);
        pack_columns(b, count, whole_vectors(count), depth, to);
        return count;
    }
    /* Rows that are stored in one piece reach the cache faster in longer pieces. */
    for (int64_t k = 0; k < depth; k++) {
        const float *from = b.data + k * b.row;
        for (int64_t panel = 0; panel < panels; panel++)
#pragma GCC unroll 4
            for (int c = 0; c < TILE_VECTORS; c++) {
                const int64_t column = panel * PANEL + c * LANES;
                if (k + AHEAD < depth) __builtin_prefetch(from + AHEAD * b.row + column);
                store(to + (panel * depth + k) * PANEL + c * LANES, load(from + column));
            }
    }
    return panels * PANEL;
}

Packed::Packed(int64_t floats) : memory(floats + LANES) {
    constexpr uintptr_t BYTES = LANES * sizeof(float);
    start = (float *)(((uintptr_t)memory.data() + BYTES - 1) / BYTES * BYTES);
}

Packed pack_a(const Matrix &a, int64_t rows, int64_t depth) {
    Packed packed(rows * depth + LANES);
    const Panels panels{rows, depth};
    for (int64_t i = 0; i < panels.chunks(); i++)
        for (int64_t j = 0; j < panels.count(); j++) {
            const Range k = panels.chunk(i), row = panels.panel(j);
            pack_rows({a.data + row.begin * a.row + k.begin * a.column, a.row, a.column}, row.end - row.begin,
                      k.end - k.begin, packed.data() + panels.place(k, row));
        }
    return packed;
}

int64_t packed_floats(int64_t depth, int64_t columns) { return depth * whole_vectors(columns); }

void pack_b(const Matrix &b, int64_t depth, int64_t columns, float *to) {
    int64_t chunks = chunks_of(depth);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Range k(depth, chunk, chunks);
        for (int64_t column = 0; column < columns;) {
            int64_t count = pack_panels({b.data + k.begin * b.row + column * b.column, b.row, b.column},
                                        columns - column, k.end - k.begin, to);
            to += whole_vectors(count) * (k.end - k.begin);
            column += count;
        }
    }
}

Packed pack_b(const Matrix &b, int64_t depth, int64_t columns) {
    Packed packed(packed_floats(depth, columns));
    pack_b(b, depth, columns, packed.data());
    return packed;
}

} // namespace fggp
