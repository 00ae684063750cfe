/* Activation functions: what a convolution, a sum or an affine map applies to its result. */
#ifndef FGGP_ACTIVATIONS_H
#define FGGP_ACTIVATIONS_H

#include "fggp.h"
#include "vectors.h"

namespace fggp {

class Activation {
  public:
    explicit Activation(const fggp_activation &function);

    /* Clamping is cheap, so an operation does it in registers: v becomes clamped(v) if `clamps`. */
    bool clamps;
    vec clamped(vec v) const { return smaller_of(larger_of(v, splat(low)), splat(high)); }
    float clamped(float v) const { return smaller_of(larger_of(v, low), high); }

    /* Every other function is applied in a second pass over the stored results, by apply(), if `follows`. */
    bool follows;
    /* Apply it to `floats` consecutive floats. mask: NULL, or for each float -1, or 0 for padding, which is zero and
     * stays so. */
    void apply(float *data, int64_t floats, const int32_t *mask) const;
    /* Apply it to a plane whose padding between the rows is zero and stays so. row: floats from one row to the next. */
    void apply_to_plane(float *data, int64_t height, int64_t width, int64_t row) const;

  private:
    /* Both keep NaN. */
    template <class T> static T larger_of(T v, T least) { return v < least ? least : v; }
    template <class T> static T smaller_of(T v, T most) { return v > most ? most : v; }

    fggp_activation function;
    bool keeps_zero;
    float low, high;
};

} // namespace fggp
#endif
