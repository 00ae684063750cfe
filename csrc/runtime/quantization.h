/* Numbers as whole ones from 0 to 255: q stands for scale · (q - zero).
 *
 * All operations round each product and each sum to float32, in the order that docs/network-file.md gives. So results are
 * the same on every processor. The files that compute with this are therefore compiled without contraction to fused
 * multiply-adds (CMakeLists.txt). */
#ifndef FGGP_QUANTIZATION_H
#define FGGP_QUANTIZATION_H

#include "vectors.h"

namespace fggp {

struct Quantization {
    float scale = 1;
    int32_t zero = 0;
    /* The numbers that stand for these. */
    float number(int32_t q) const { return (float)(q - zero) * scale; }
    vec number(ivec q) const { return __builtin_convertvector(q - zero, vec) * scale; }
};

/* Rounds float32 numbers to the nearest whole ones, halves to even, and limits them to 0 … 255. NaN becomes 0. */
class Quantizer {
  public:
    explicit Quantizer(const Quantization &to)
        : inverse(1.0f / to.scale), low((float)-to.zero), high((float)(255 - to.zero)), shift(to.zero - BITS) {}
    int32_t operator()(float x) const {
        x *= inverse;
        x = x > low ? x : low;
        x = (x < high ? x : high) + ROUND;
        int32_t bits;
        memcpy(&bits, &x, 4);
        return bits + shift;
    }
    ivec operator()(vec x) const {
        x *= inverse;
        x = x > low ? x : splat(low);
        x = (x < high ? x : splat(high)) + ROUND;
        return (ivec)x + shift;
    }

  private:
    /* Adding it rounds to a whole number, which the lowest bits then hold. */
    static constexpr float ROUND = 0x1.8p23f;
    static constexpr int32_t BITS = 0x4b400000;
    float inverse, low, high;
    int32_t shift;
};

} // namespace fggp
#endif
