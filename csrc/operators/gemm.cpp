#include "operators/gemm.h"

#include <algorithm>
#include <cmath>

namespace fggp {
namespace {

/* The sums of a tile: TILE_ROWS × TILE_VECTORS vectors. Two to four further registers hold what is multiplied. */
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14, TILE_VECTORS = 2;
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 6, TILE_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int TILE_ROWS = 4, TILE_VECTORS = 4;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif
static_assert(TILE_ROWS <= LANES, "pack_rows() stores the rows of a panel as one vector");

constexpr int PANEL = TILE_VECTORS * LANES; /* columns of a panel of b */
constexpr int64_t DEPTH = 256;              /* the most rows of a panel of b: the panel fits the first-level cache */
constexpr int64_t A_BLOCK = 96 * 1024, B_BLOCK = 96 * 1024; /* floats; the blocks of a and b fit the second-level cache */
constexpr int64_t UNPACKED_ROWS = 2 * TILE_ROWS; /* with up to this many rows, packing b does not pay */
constexpr int64_t DOT_ROWS = 8; /* with up to this many rows, packing b does not pay even if it must be transposed */

/* From `begin` to before `end`. */
struct Span {
    int64_t begin, end;
    Span(int64_t begin, int64_t end) : begin(begin), end(end) {}
    Span(Range range) : begin(range.begin), end(range.end) {}
};

int64_t up(int64_t count, int64_t size) { return (count + size - 1) / size; }

int64_t chunks_of(int64_t depth) { return std::max<int64_t>(1, up(depth, DEPTH)); }
int64_t most_of_chunk(int64_t depth) { return up(depth, chunks_of(depth)); }
/* Panels of a are about equally high, because a panel of few rows would not use the processor well. */
int64_t a_panels(int64_t rows) { return up(rows, TILE_ROWS); }
int64_t b_panels(int64_t columns) { return up(columns, PANEL); }
int64_t padded(int64_t columns) { return up(columns, LANES) * LANES; }

vec load_first(const float *p, int64_t count) {
    if (count >= LANES) return load(p);
    float all[LANES] = {};
    copy_pieces<LANES / 2>(all, p, count);
    return load(all);
}

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

/* Pack `rows` ≤ TILE_ROWS rows: element (i, k) to to[k * rows + i]. Up to LANES floats after the last may be written. */
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

/* Pack `count` columns: element (k, j) to to[k * width + j], and zeros from `count` to `width`, whole vectors. */
void pack_columns(const Matrix &b, int64_t count, int64_t width, int64_t depth, float *to) {
    if (b.column == 1) {
        if (count == PANEL) {
            for (int64_t k = 0; k < depth; k++)
                for (int c = 0; c < TILE_VECTORS; c++)
                    store(to + k * PANEL + c * LANES, load(b.data + k * b.row + c * LANES));
            return;
        }
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < width; j += LANES)
                store(to + k * width + j, load_first(b.data + k * b.row + j, std::max<int64_t>(0, count - j)));
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

/* A tile of the output, of whole vectors. */
struct Tile {
    float *out;
    int64_t out_row;
    const float *row_bias, *column_bias, *residual;
    int64_t residual_row;
    bool first, last; /* first chunk of the depth: start from zero; last chunk: add bias and residual, and clamp */
    const Activation *activation;
};

template <int R, int C> void run_tile(int64_t depth, const float *a, const float *b, int64_t b_row, const Tile &tile) {
    /* With few sums, each addition would wait for the previous one; so several depths at once have their own sums. */
    constexpr int CHAINS = R * C >= 8 ? 1 : R * C >= 4 ? 2 : R * C >= 2 ? 4 : 8;
    vec sums[CHAINS][R][C] = {};
    int64_t k = 0;
    for (; k + CHAINS <= depth; k += CHAINS) {
#pragma GCC unroll 8
        for (int chain = 0; chain < CHAINS; chain++) {
            vec values[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) values[c] = load(b + c * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                vec factor = splat(a[r]);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[chain][r][c] += factor * values[c];
            }
            a += R, b += b_row;
        }
    }
    if constexpr (CHAINS > 1) {
        for (; k < depth; k++, a += R, b += b_row)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] += splat(a[r]) * load(b + c * LANES);
#pragma GCC unroll 8
        for (int chain = 1; chain < CHAINS; chain++)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] += sums[chain][r][c];
    }
    const bool clamps = tile.last && tile.activation && tile.activation->clamps;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        float *out = tile.out + r * tile.out_row;
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            vec sum = sums[0][r][c];
            if (!tile.first) sum += load(out + c * LANES);
            if (tile.last) {
                if (tile.row_bias) sum += splat(tile.row_bias[r]);
                if (tile.column_bias) sum += load(tile.column_bias + c * LANES);
                if (tile.residual) sum += load(tile.residual + r * tile.residual_row + c * LANES);
            }
            if (clamps) sum = tile.activation->clamped(sum);
            store(out + c * LANES, sum);
        }
    }
}

typedef void (*Kernel)(int64_t depth, const float *a, const float *b, int64_t b_row, const Tile &);
struct Kernels {
    Kernel kernels[TILE_ROWS][TILE_VECTORS];
    template <int R, int... C> constexpr void fill_row(std::integer_sequence<int, C...>) {
        ((kernels[R][C] = &run_tile<R + 1, C + 1>), ...);
    }
    template <int... R> constexpr Kernels(std::integer_sequence<int, R...>) : kernels() {
        (fill_row<R>(std::make_integer_sequence<int, TILE_VECTORS>()), ...);
    }
};
constexpr Kernels KERNELS{std::make_integer_sequence<int, TILE_ROWS>()};

/* One tile: `rows` × `columns` of the output from (row, column) on. */
void run_edge(const Gemm &g, Kernel kernel, int64_t rows, int64_t columns, int64_t depth, const float *a,
              const float *b, int64_t b_row, Tile tile) {
    float out[TILE_ROWS * PANEL], residual[TILE_ROWS * PANEL], bias[PANEL];
    float *real_out = tile.out;
    auto copy = [&](float *to, int64_t to_row, const float *from, int64_t from_row) {
        for (int64_t r = 0; r < rows; r++) memcpy(to + r * to_row, from + r * from_row, columns * sizeof(float));
    };
    /* What lies beside the columns is computed too, from zeros. */
    if (!tile.first) {
        std::fill(out, out + rows * PANEL, 0.0f);
        copy(out, PANEL, real_out, g.out_row);
    }
    if (tile.residual) {
        std::fill(residual, residual + rows * PANEL, 0.0f);
        copy(residual, PANEL, tile.residual, g.residual_row);
        tile.residual = residual, tile.residual_row = PANEL;
    }
    if (tile.column_bias) {
        std::fill(bias, bias + PANEL, 0.0f);
        std::copy(tile.column_bias, tile.column_bias + columns, bias);
        tile.column_bias = bias;
    }
    tile.out = out, tile.out_row = PANEL;
    kernel(depth, a, b, b_row, tile);
    copy(real_out, g.out_row, out, PANEL);
}

void activate(const Gemm &g, Span rows, Span columns) {
    if (!g.activation || !g.activation->follows) return;
    for (int64_t i = rows.begin; i < rows.end; i++)
        g.activation->apply(g.out + i * g.out_row + columns.begin, columns.end - columns.begin, nullptr);
}

/* N scalar products of x with rows of b, whose elements adjoin. */
template <int N> void dot(const float *x, const float *b, int64_t b_column, int64_t depth, float *sums) {
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
        vec value = load_first(x + k, depth - k);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum[n][0] += value * load_first(b + n * b_column + k, depth - k);
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

bool by_dots(const Gemm &g) {
    return !g.packed_a && !g.packed_b && !g.patches && g.a.column == 1 && g.b.row == 1 && g.rows <= DOT_ROWS;
}

/* Few rows: each element of b is used few times, so it is read where it lies. */
void multiply_by_dots(const Gemm &g, Span columns) {
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

/* The part of the product whose panels of rows and columns are these. */
void multiply_part(const Gemm &g, Span row_panels, Span column_panels, float *scratch) {
    if (by_dots(g))
        return multiply_by_dots(g, {column_panels.begin * PANEL, std::min(g.columns, column_panels.end * PANEL)});
    const int64_t panels = a_panels(g.rows), chunks = chunks_of(g.depth), most = most_of_chunk(g.depth);
    const int64_t block_rows = std::max<int64_t>(1, A_BLOCK / (std::max<int64_t>(1, most) * TILE_ROWS));
    const int64_t block_columns = std::max<int64_t>(1, B_BLOCK / (std::max<int64_t>(1, most) * PANEL));
    const bool in_place = !g.packed_b && !g.patches && g.b.column == 1 && g.rows <= UNPACKED_ROWS;
    float *a_block = scratch;
    float *b_block = scratch + up(most * std::min(block_rows, panels) * TILE_ROWS + LANES, 16) * 16;
    auto row_of = [&](int64_t panel) { return g.rows * panel / panels; };

    for (int64_t column_begin = column_panels.begin; column_begin < column_panels.end; column_begin += block_columns) {
        const int64_t column_end = std::min(column_begin + block_columns, column_panels.end);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const Range k(g.depth, chunk, chunks);
            const int64_t depth = k.end - k.begin;
            auto pack_panel = [&](int64_t panel, float *to) {
                int64_t column = panel * PANEL, count = std::min<int64_t>(PANEL, g.columns - column);
                if (g.patches)
                    g.patches->pack(g.batch, k.begin, k.end, column, count, padded(count), to);
                else
                    pack_columns({g.b.data + k.begin * g.b.row + column * g.b.column, g.b.row, g.b.column}, count,
                                 padded(count), depth, to);
            };
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
                    int64_t width = padded(count);
                    const float *b;
                    if (g.packed_b)
                        b = g.packed_b + k.begin * padded(g.columns) + column * depth;
                    else if (in_place && count == PANEL)
                        b = g.b.data + k.begin * g.b.row + column, width = g.b.row;
                    else {
                        float *packed = b_block + (column - column_begin * PANEL) * depth;
                        if (row_begin == row_panels.begin) pack_panel(j, packed);
                        b = packed;
                    }
                    for (int64_t i = row_begin; i < row_end; i++) {
                        const int64_t row = row_of(i), rows = row_of(i + 1) - row;
                        const bool last = chunk == chunks - 1;
                        Tile tile;
                        tile.out = g.out + row * g.out_row + column;
                        tile.out_row = g.out_row;
                        tile.row_bias = last && g.row_bias ? g.row_bias + row : nullptr;
                        tile.column_bias = last && g.column_bias ? g.column_bias + column : nullptr;
                        tile.residual = last && g.residual ? g.residual + row * g.residual_row + column : nullptr;
                        tile.residual_row = g.residual_row;
                        tile.first = chunk == 0, tile.last = last;
                        tile.activation = g.activation;
                        Kernel kernel = KERNELS.kernels[rows - 1][up(count, LANES) - 1];
                        const float *panel = a + (row - first_row) * depth;
                        if (count % LANES == 0)
                            kernel(depth, panel, b, width, tile);
                        else
                            run_edge(g, kernel, rows, count, depth, panel, b, width, tile);
                    }
                }
                if (chunk == chunks - 1)
                    activate(g, {first_row, row_of(row_end)},
                             {column_begin * PANEL, std::min(g.columns, column_end * PANEL)});
            }
        }
    }
}

} // namespace

Packed::Packed(int64_t floats) : memory(floats + LANES) {
    constexpr uintptr_t BYTES = LANES * sizeof(float);
    start = (float *)(((uintptr_t)memory.data() + BYTES - 1) / BYTES * BYTES);
}

Packed pack_a(const Matrix &a, int64_t rows, int64_t depth) {
    Packed packed(rows * depth + LANES);
    int64_t panels = a_panels(rows), chunks = chunks_of(depth);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Range k(depth, chunk, chunks);
        for (int64_t panel = 0; panel < panels; panel++) {
            Range row(rows, panel, panels);
            pack_rows({a.data + row.begin * a.row + k.begin * a.column, a.row, a.column}, row.end - row.begin,
                      k.end - k.begin, packed.data() + k.begin * rows + row.begin * (k.end - k.begin));
        }
    }
    return packed;
}

Packed pack_b(const Matrix &b, int64_t depth, int64_t columns) {
    Packed packed(depth * padded(columns));
    int64_t chunks = chunks_of(depth);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Range k(depth, chunk, chunks);
        for (int64_t column = 0; column < columns; column += PANEL) {
            int64_t count = std::min<int64_t>(PANEL, columns - column);
            pack_columns({b.data + k.begin * b.row + column * b.column, b.row, b.column}, count, padded(count),
                         k.end - k.begin,
                         packed.data() + k.begin * padded(columns) + column * (k.end - k.begin));
        }
    }
    return packed;
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

namespace {

constexpr double WORTH_A_TASK = 1 << 15; /* products: with fewer, starting another task takes as long */

class GemmOperation : public Operation {
  public:
    GemmOperation(const Gemm &gemm, bool constant_a, bool constant_b, const fggp_activation &function,
                  const Batches &batches, std::unique_ptr<Patches> patches)
        : gemm(gemm), function(function), batches(batches), patches(std::move(patches)) {
        Gemm &g = this->gemm;
        g.patches = this->patches.get();
        g.activation = &this->function;
        for (int64_t size : batches.sizes) count *= size;
        const bool same_b = this->batches.b.empty(), same_a = this->batches.a.empty();
        /* A column of the output is a row of the transposed product, which is faster. */
        if (g.columns == 1 && g.rows > 1 && !g.patches && g.out_row == 1 && (!g.residual || g.residual_row == 1)) {
            std::swap(g.rows, g.columns);
            std::swap(g.row_bias, g.column_bias);
            Matrix a = g.a;
            g.a = g.b.transposed(), g.b = a.transposed();
            std::swap(this->batches.a, this->batches.b);
            g.out_row = g.columns, g.residual_row = g.columns;
            set_constants(constant_b && same_b, constant_a && same_a);
        } else
            set_constants(constant_a && same_a, constant_b && same_b);
    }

    int tasks(int threads) const override {
        if (threads == 1) return 1;
        const double products = (double)gemm.rows * gemm.columns * std::max<int64_t>(1, gemm.depth) * count;
        const double most = std::min<double>({products / WORTH_A_TASK, 4.0 * threads, 1 << 20});
        const int wanted = most < threads ? (int)most : (int)most / threads * threads;
        if (wanted <= 1) return 1;
        return (int)std::min<int64_t>(wanted, count * split(wanted).tasks());
    }
    int64_t scratch() const override { return gemm_scratch(gemm.rows, gemm.columns, gemm.depth); }

    void run(int task, int tasks, const Call &, float *scratch) const override {
        const Split parts = split(tasks);
        const Range items(count * parts.tasks(), task, tasks);
        for (int64_t item = items.begin; item < items.end; item++) {
            const int64_t part = item % parts.tasks();
            multiply_part(product(item / parts.tasks()), Range(a_panels(gemm.rows), part % parts.rows, parts.rows),
                          Range(b_panels(gemm.columns), part / parts.rows, parts.columns), scratch);
        }
    }

  private:
    /* How many parts each product is divided into. */
    struct Split {
        int64_t rows, columns;
        int64_t tasks() const { return rows * columns; }
    };
    /* For so many tasks. Each part packs its rows and columns, so they should be few. */
    Split split(int tasks) const {
        if (count >= tasks) return {1, 1};
        const int64_t parts = up(tasks, count), most_rows = by_dots(gemm) ? 1 : a_panels(gemm.rows);
        Split best = {1, 1};
        double least = INFINITY;
        for (int64_t rows = 1; rows <= std::min(parts, most_rows); rows++) {
            const Split one = {rows, std::min(up(parts, rows), b_panels(gemm.columns))};
            const double panels = (double)up(most_rows, one.rows) * up(b_panels(gemm.columns), one.columns);
            const double packed = (gemm.packed_a ? 0.0 : (double)one.columns * gemm.rows) +
                                  (gemm.packed_b ? 0.0 : (double)one.rows * gemm.columns);
            /* in products by a row and a column; packing an element takes as long as about four products */
            const double cost = panels * TILE_ROWS * PANEL * tasks / count + 4 * packed;
            if (cost < least) least = cost, best = one;
        }
        return best;
    }

    void set_constants(bool constant_a, bool constant_b) {
        Gemm &g = gemm;
        if (g.depth == 0) {
            g.a = g.b = Matrix(); /* which have no elements, perhaps no address */
            return;
        }
        if (by_dots(g) && (g.rows == 1 || !constant_b)) return;
        if (constant_b && !g.patches) {
            copy_b = pack_b(g.b, g.depth, g.columns);
            g.packed_b = copy_b.data();
        }
        if (constant_a) {
            copy_a = pack_a(g.a, g.rows, g.depth);
            g.packed_a = copy_a.data();
        }
    }

    Gemm product(int64_t index) const {
        Gemm g = gemm;
        g.batch = index;
        for (size_t d = batches.sizes.size(); d-- > 0; index /= batches.sizes[d]) {
            const int64_t i = index % batches.sizes[d];
            if (!batches.a.empty()) g.a.data += i * batches.a[d];
            if (!batches.b.empty()) g.b.data += i * batches.b[d];
            if (!batches.out.empty()) g.out += i * batches.out[d];
            if (!batches.residual.empty() && g.residual) g.residual += i * batches.residual[d];
        }
        return g;
    }

    Gemm gemm;
    Activation function;
    Batches batches;
    std::unique_ptr<Patches> patches;
    int64_t count = 1;
    Packed copy_a, copy_b;
};

} // namespace

std::unique_ptr<Operation> new_gemm(const Gemm &gemm, bool constant_a, bool constant_b, const fggp_activation &activation,
                                    const Batches &batches, std::unique_ptr<Patches> patches) {
    return std::make_unique<GemmOperation>(gemm, constant_a, constant_b, activation, batches, std::move(patches));
}

} // namespace fggp
