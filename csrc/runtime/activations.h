/* Activation functions: what a convolution, a sum or an affine map applies to its result. */
#ifndef FGGP_ACTIVATIONS_H
#define FGGP_ACTIVATIONS_H

#include "runtime/kernels.h"
#include "vectors.h"

namespace fggp {

class Activation {
  public:
    explicit Activation(const fggp_activation &function);

    /* Clamping is cheap, so an operation does it in registers: v becomes clamped(v) if `clamps`. */
    bool clamps;
    bool relu; /* whether that is from 0 on, which large networks do most */
    vec clamped(vec v) const {
        v = v < low ? splat(low) : v; /* both keep NaN */
        return v > high ? splat(high) : v;
    }

    /* Every other function is applied in a second pass over the stored results, by apply(), if `follows`. */
    bool follows;
    /* Apply it to `floats` consecutive floats. mask: NULL, or for each float -1, or 0 for padding, which is zero and
     * stays so. */
    void apply(float *data, int64_t floats, const int32_t *mask) const;
    /* Apply it to a plane whose padding between the rows is zero and stays so. row: floats from one row to the next. */
    void apply_to_plane(float *data, int64_t height, int64_t width, int64_t row) const;

  private:
    fggp_activation function;
    float low, high;
    bool keeps_zero;
};

} // namespace fggp
#endif
