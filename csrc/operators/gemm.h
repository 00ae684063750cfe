/* The dense matrix product out = activation(a · b + bias + residual) in float32.
 *
 * As in GotoBLAS and BLIS (Goto and van de Geijn, 2008; Van Zee and van de Geijn, 2015), blocks of a and b are packed
 * into panels, which stay in the caches, and a kernel keeps the sums of a tile of the output in registers. */
#ifndef FGGP_OPERATORS_GEMM_H
#define FGGP_OPERATORS_GEMM_H

#include "operators/packing.h"
#include "runtime/activations.h"

namespace fggp {

/* A matrix b that is not stored anywhere, such as the patches of an image that a convolution reads. */
struct Patches {
    virtual ~Patches() = default;
    /* Write rows `begin` to before `end` of `count` columns from `column` on: row k at to + (k - begin) * width. Fill
     * from `count` to `width` with zeros. batch: the number of the product in its batch. */
    virtual void pack(int64_t batch, int64_t begin, int64_t end, int64_t column, int64_t count, int64_t width,
                      float *to) const = 0;
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

/* From `begin` to before `end`. */
struct Interval {
    int64_t begin, end;
    Interval(int64_t begin, int64_t end) : begin(begin), end(end) {}
    Interval(Range range) : begin(range.begin), end(range.end) {}
};

/* Floats of scratch memory for a product of these sizes, or of smaller ones. */
int64_t gemm_scratch(int64_t rows, int64_t columns, int64_t depth);
/* The whole product, by the calling thread. For use within operations. */
void multiply(const Gemm &, float *scratch);
/* The part of the product whose panels of rows and columns are these. */
void multiply_part(const Gemm &, Interval row_panels, Interval column_panels, float *scratch);

/* Whether b is read where it lies: by scalar products of few rows with its columns, or as a sum of its rows. */
bool by_dots(const Gemm &);
bool by_row(const Gemm &);

} // namespace fggp
#endif
