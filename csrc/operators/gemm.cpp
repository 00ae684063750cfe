#include "operators/gemm.h"

#include <algorithm>
#include <cmath>

#include "operators/tile.h"

namespace fggp {
namespace {

static_assert(TILE_ROWS <= LANES, "pack_rows() stores the rows of a panel as one vector");

constexpr int PANEL = TILE_VECTORS * LANES; /* columns of a panel of b */
constexpr int64_t DEPTH = 256;              /* the most rows of a panel of b: the panel fits the first-level cache */
/* Floats of the blocks of a and of b, which fit the second-level cache. */
constexpr int64_t A_BLOCK = 96 * 1024, B_BLOCK = 96 * 1024;
constexpr int64_t UNPACKED_ROWS = TILE_ROWS; /* with up to this many rows, packing b does not pay */
constexpr int64_t DOT_ROWS = 8; /* with up to this many rows, packing b does not pay even if it must be transposed */

constexpr int64_t GROUP = 4; /* panels that are packed at once */
constexpr int64_t AHEAD = 8; /* rows that are fetched before they are packed */

int64_t chunks_of(int64_t depth) { return std::max<int64_t>(1, up(depth, DEPTH)); }
int64_t most_of_chunk(int64_t depth) { return up(depth, chunks_of(depth)); }
int64_t a_panels(int64_t rows) { return up(rows, TILE_ROWS); }
int64_t b_panels(int64_t columns) { return up(columns, PANEL); }
int64_t whole_vectors(int64_t columns) { return up(columns, LANES) * LANES; }

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

/* Pack `rows` ≤ TILE_ROWS rows: element (i, k) to to[k * rows + i]. LANES floats after the last may be written. */
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

/* Pack the first panel of so many columns, or several if that is faster. Returns the number of columns packed. */
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

/* What follows the sums of some rows of a panel. */
__attribute__((noinline)) void finish(const Gemm &g, Span rows, int64_t column, int64_t count) {
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

void activate(const Gemm &g, Span rows, Span columns) {
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

bool by_row(const Gemm &g) { return g.rows == 1 && !g.packed_a && !g.packed_b && !g.patches && g.b.column == 1; }

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

void multiply_by_row(const Gemm &g, Span columns) {
    constexpr int64_t MOST = REGISTERS * LANES;
    int64_t column = columns.begin;
    for (; column + MOST <= columns.end; column += MOST) row_times<REGISTERS>(g, column, MOST);
    for (; column < columns.end; column += LANES)
        row_times<1>(g, column, std::min<int64_t>(LANES, columns.end - column));
    finish(g, {0, 1}, columns.begin, columns.end - columns.begin);
    activate(g, {0, 1}, columns);
}

/* The part of the product whose panels of rows and columns are these. */
void multiply_part(const Gemm &g, Span row_panels, Span column_panels, float *scratch) {
    const Span columns = {column_panels.begin * PANEL, std::min(g.columns, column_panels.end * PANEL)};
    if (by_dots(g)) return multiply_by_dots(g, columns);
    if (by_row(g)) return multiply_by_row(g, columns);
    const int64_t panels = a_panels(g.rows), chunks = chunks_of(g.depth), most = most_of_chunk(g.depth);
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

} // namespace

int64_t Panels::chunks() const { return chunks_of(depth); }
int64_t Panels::count() const { return a_panels(rows); }

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

constexpr double LEAST_PRODUCTS = 1 << 15; /* of a task: with fewer, starting another takes as long */
/* Products that take as long as packing an element of a matrix, or of a patch. */
constexpr double PACKING = 4, PACKING_PATCHES = 24;
constexpr double WORTH_BALANCE = 1.05; /* the time that it may cost to have tasks for balance */
constexpr double MANY_PRODUCTS = 1 << 20; /* with so many in a task, further tasks cost little, and balance threads */

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
        const int64_t wanted = (int64_t)std::min<double>(threads, products / LEAST_PRODUCTS);
        if (wanted <= 1) return 1;
        if (wanted < threads) return (int)std::min<int64_t>(wanted, count * split(wanted).tasks());
        /* Further tasks balance the threads, but each of them packs what it multiplies. */
        int64_t best = threads;
        double least = INFINITY;
        for (int64_t each = 1; each <= std::max<int64_t>(1, std::min<int64_t>(4, products / threads / MANY_PRODUCTS)); each++) {
            const Split parts = split(threads * each);
            const double cost = up(count * parts.tasks(), threads) * cost_of(parts);
            if (cost > least * WORTH_BALANCE) continue;
            best = count * parts.tasks() < threads * each ? count * parts.tasks() : threads * each;
            least = std::min(least, cost);
        }
        return (int)best;
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
    Split split(int64_t tasks) const {
        if (count >= tasks) return {1, 1};
        const int64_t parts = up(tasks, count);
        Split best = {1, 1};
        double least = INFINITY;
        for (int64_t rows = 1; rows <= std::min(parts, row_panels()); rows++) {
            const Split one = {rows, std::min(up(parts, rows), b_panels(gemm.columns))};
            const double cost = cost_of(one) * one.tasks();
            if (cost < least) least = cost, best = one;
        }
        return best;
    }
    int64_t row_panels() const { return by_dots(gemm) ? 1 : a_panels(gemm.rows); }
    /* What a part takes, in products by a row and a column. */
    double cost_of(const Split &s) const {
        const double panels = (double)up(row_panels(), s.rows) * up(b_panels(gemm.columns), s.columns);
        const double rows = gemm.packed_a ? 0.0 : PACKING * gemm.rows / s.rows;
        const double columns = gemm.packed_b ? 0.0 : (gemm.patches ? PACKING_PATCHES : PACKING) * gemm.columns / s.columns;
        return panels * TILE_ROWS * PANEL + rows + columns;
    }

    void set_constants(bool constant_a, bool constant_b) {
        Gemm &g = gemm;
        if (g.depth == 0) {
            g.a = g.b = Matrix(); /* which have no elements, perhaps no address */
            return;
        }
        if (by_row(g) || (by_dots(g) && (g.rows == 1 || !constant_b))) return;
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

std::unique_ptr<Operation> new_gemm(const Gemm &gemm, bool constant_a, bool constant_b, const fggp_activation &function,
                                    const Batches &batches, std::unique_ptr<Patches> patches) {
    return std::make_unique<GemmOperation>(gemm, constant_a, constant_b, function, batches, std::move(patches));
}

} // namespace fggp
