#include "operators/gemm_operation.h"

#include <algorithm>
#include <cmath>

namespace fggp {
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
