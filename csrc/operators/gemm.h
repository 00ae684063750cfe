/* The dense matrix product out = activation(a · b + bias + residual) in float32.
 *
 * As in GotoBLAS and BLIS (Goto and van de Geijn, 2008; Van Zee and van de Geijn, 2015), blocks of a and b are packed
 * into panels, which stay in the caches, and a kernel keeps the sums of a tile of the output in registers. */
#ifndef FGGP_OPERATORS_GEMM_H
#define FGGP_OPERATORS_GEMM_H

#include <memory>
#include <vector>

#include "runtime/activations.h"
#include "runtime/operation.h"
#include "vectors.h"

namespace fggp {

/* Element (i, j) is data[i * row + j * column]. A transposed matrix has the two exchanged. */
struct Matrix {
    const float *data = nullptr;
    int64_t row = 0, column = 0;
    Matrix transposed() const { return {data, column, row}; }
};

/* A matrix b that is not stored anywhere, such as the patches of an image that a convolution reads. */
struct Patches {
    virtual ~Patches() = default;
    /* Write rows `begin` to before `end` of `count` columns from `column` on: row k at to + (k - begin) * width. Fill
     * from `count` to `width` with zeros. batch: the number of the product in its batch. */
    virtual void pack(int64_t batch, int64_t begin, int64_t end, int64_t column, int64_t count, int64_t width,
                      float *to) const = 0;
};

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

struct Gemm {
    int64_t rows = 0, columns = 0, depth = 0; /* a is rows × depth, b is depth × columns */
    Matrix a, b;
    const float *packed_a = nullptr, *packed_b = nullptr; /* instead of a and b: what pack_a and pack_b returned */
    const Patches *patches = nullptr;                     /* instead of b */
    int64_t batch = 0;                                    /* what `patches` is told */
    float *out = nullptr;
    int64_t out_row = 0;                  /* floats from one row of the output to the next; its columns adjoin */
    const float *row_bias = nullptr;      /* a number for each row, or NULL */
    const float *column_bias = nullptr;   /* a number for each column, or NULL */
    const float *residual = nullptr;      /* rows × columns, or NULL; it may not overlap the output */
    int64_t residual_row = 0;
    const Activation *activation = nullptr; /* or NULL */
};

/* How many pieces of a size cover so many. */
inline int64_t up(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* From `begin` to before `end`. */
struct Span {
    int64_t begin, end;
    Span(int64_t begin, int64_t end) : begin(begin), end(end) {}
    Span(Range range) : begin(range.begin), end(range.end) {}
};

/* How a is packed: in chunks of its depth, each in panels of about equally many rows, because a panel of few rows would not
 * use the processor well. A chunk of panels of b fits the first-level cache. */
struct Panels {
    int64_t rows, depth;
    int64_t chunks() const;
    Range chunk(int64_t index) const { return {depth, index, chunks()}; }
    int64_t count() const;
    Range panel(int64_t index) const { return {rows, index, count()}; }
    /* Where a panel's part of a chunk begins. */
    int64_t place(const Range &chunk, const Range &panel) const {
        return chunk.begin * rows + panel.begin * (chunk.end - chunk.begin);
    }
};

Packed pack_a(const Matrix &a, int64_t rows, int64_t depth);
Packed pack_b(const Matrix &b, int64_t depth, int64_t columns);
/* The same into memory of the caller's, which should be aligned to a vector, and how many floats it needs. */
void pack_b(const Matrix &b, int64_t depth, int64_t columns, float *to);
int64_t packed_floats(int64_t depth, int64_t columns);

/* Floats of scratch memory for a product of these sizes, or of smaller ones. */
int64_t gemm_scratch(int64_t rows, int64_t columns, int64_t depth);
/* The whole product, by the calling thread. For use within operations. */
void multiply(const Gemm &, float *scratch);

/* Products that differ only in where their matrices start: product (i, j, …) of sizes (I, J, …) at the sum of its
 * indices times the strides, in floats. An empty list of strides is all 0. */
struct Batches {
    std::vector<int64_t> sizes, a, b, out, residual;
};

/* The products as an operation, which several threads share. The operation packs constant matrices and keeps the copy;
 * `packed_a`, `packed_b` and `activation` are NULL. It owns the patches. What b's patches hold may change from run to
 * run. Neither rows nor columns nor a size of the batches is 0. */
std::unique_ptr<Operation> new_gemm(const Gemm &, bool constant_a, bool constant_b, const fggp_activation &,
                                    const Batches &batches = {}, std::unique_ptr<Patches> patches = nullptr);

} // namespace fggp
#endif
