/* Vectors of doubles, the functions that several kernels compute in vectors, and loops that apply them. */
#ifndef FGGP_FUNCTIONS_H
#define FGGP_FUNCTIONS_H

#include <algorithm>
#include <cmath>

#include "vectors.h"

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FGGP_FMA 1
#endif

namespace fggp {

constexpr int HALF = LANES / 2;

typedef double dvec __attribute__((vector_size(HALF * 8)));
typedef int64_t lvec __attribute__((vector_size(HALF * 8)));
typedef uint64_t ulvec __attribute__((vector_size(HALF * 8)));
typedef float half_vec __attribute__((vector_size(HALF * 4)));
typedef float loose_half_vec __attribute__((vector_size(HALF * 4), aligned(4), may_alias));
typedef double loose_dvec __attribute__((vector_size(HALF * 8), aligned(4), may_alias));

inline dvec wide(double x) { return x - dvec{}; }
inline dvec limited(dvec x, double low, double high) { /* keeps NaN */
    x = x < low ? wide(low) : x;
    return x > high ? wide(high) : x;
}
inline dvec load_wide(const float *p) { return __builtin_convertvector(*(const loose_half_vec *)p, dvec); }
inline void store_narrow(float *p, dvec v) { *(loose_half_vec *)p = __builtin_convertvector(v, half_vec); }

inline bool any(lvec mask) {
    int64_t all = 0;
    for (int k = 0; k < HALF; k++) all |= mask[k];
    return all != 0;
}
inline double sum_of(dvec v) {
    double sum = 0;
    for (int k = 0; k < HALF; k++) sum += v[k];
    return sum;
}

/* Rounded once where the processor has such an instruction: the compiler may contract it. */
inline vec multiply_add(vec a, vec b, vec c) { return a * b + c; }

/* 2ⁿ · (1 + rest) = eˣ for |x| ≤ 700, to 2⁻³². */
struct Exponential {
    dvec power, rest; /* 2ⁿ, and a number between -0.3 and 0.42 */
    explicit Exponential(dvec x) {
        constexpr double ROUND = 0x1.8p52; /* adding it rounds to an integer, which the lowest bits then hold */
        dvec rounded = x * 1.4426950408889634 + ROUND;
        power = (dvec)(((lvec)rounded << 52) + (1023LL << 52));
        dvec r = x - (rounded - ROUND) * 0.69314718055994531;
        dvec p = r * (1.0 / 40320) + 1.0 / 5040;
        p = p * r + 1.0 / 720;
        p = p * r + 1.0 / 120;
        p = p * r + 1.0 / 24;
        p = p * r + 1.0 / 6;
        p = p * r + 0.5;
        rest = r * r * p + r;
    }
    dvec value() const { return power * rest + power; }
    dvec minus_one() const { return power * rest + (power - 1.0); } /* eˣ - 1, also for small x */
};

/* eˣ of floats; a float's overflow and underflow come from the conversion. */
inline dvec exponential(dvec x) { return Exponential(limited(x, -700, 700)).value(); }

#ifdef FGGP_FMA

/* 2ⁿ · (1 + rest) = eˣ in floats, for |x| ≤ 120. */
struct FloatExponential {
    vec rest; /* between -0.3 and 0.42, rounded little more than once */
    explicit FloatExponential(vec x) {
        vec rounded = multiply_add(x, splat(1.44269504f), splat(ROUND));
        vec n = rounded - ROUND;
        vec r = multiply_add(n, splat(-0x1.62e4p-1f), x); /* ln 2 in two parts; the product with the first is exact */
        r = multiply_add(n, splat(-0x1.7f7d1cp-20f), r);
        vec p = multiply_add(r, splat(1.0f / 5040), splat(1.0f / 720));
        p = multiply_add(p, r, splat(1.0f / 120));
        p = multiply_add(p, r, splat(1.0f / 24));
        p = multiply_add(p, r, splat(1.0f / 6));
        p = multiply_add(p, r, splat(0.5f));
        rest = multiply_add(r * r, p, r);
        bits = (ivec)rounded;
    }
    ivec exponent() const { return bits - (ivec)splat(ROUND); }      /* n */
    vec power() const { return (vec)((bits << 23) + 0x3f800000); } /* 2ⁿ for n from -126 to 127 */

  private:
    static constexpr float ROUND = 0x1.8p23f; /* as in Exponential */
    ivec bits;                                /* n, in the lowest ones */
};

/* eˣ for all floats, within 1 unit in the last place. */
inline vec exponential(vec x) {
    ivec none = x < -104.0f;           /* gives 0, but not by underflow, which takes processors long */
    x = none ? vec{} : x;
    x = x > 89.0f ? splat(89) : x; /* which gives infinity */
    FloatExponential e(x);
    vec value = e.rest + 1.0f;
    ivec k = e.exponent();
    ivec first = k >> 1; /* in two steps, because 2^k may be no normal number */
    value = value * (vec)((first + 127) << 23) * (vec)((k - first + 127) << 23);
    return none ? vec{} : value;
}

#else

inline vec exponential(vec x) {
    ivec none = x < -104.0f; /* gives 0, but not by underflow, which takes processors long */
    float all[LANES];
    store(all, none ? vec{} : x);
    store_narrow(all, exponential(load_wide(all)));
    store_narrow(all + HALF, exponential(load_wide(all + HALF)));
    return none ? vec{} : load(all);
}

#endif

/* log(1 + x) to 2⁻³⁸ for x > -1; u is 1 + x, rounded, and no denormal number. */
inline dvec logarithm(dvec u, dvec x) {
    constexpr uint64_t LEAST = 0x3fe6a09e667f3bcdULL; /* of √½: u = 2ⁿ · m with m from √½ to √2 */
    constexpr uint64_t MAGIC = 0x4330000000000000ULL; /* 2⁵²: it turns small integers into doubles */
    ulvec biased = ((ulvec)u - LEAST + (1023ULL << 52)) >> 52; /* n + 1023, which is positive */
    ulvec n = biased - 1023;
    dvec m = (dvec)((ulvec)u - (n << 52));
    dvec f = n == 0 ? x : m - 1.0; /* x has what is lost in u */
    dvec s = f / (f + 2.0), z = s * s;
    dvec p = z * (1.0 / 13) + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    dvec exponent = (dvec)(biased + MAGIC) - (0x1p52 + 1023);
    return exponent * 0.69314718055994531 + (s + s) * (p * z + 1.0);
}
inline dvec special_logarithm(dvec u, dvec result) { /* of 0, infinity, negative numbers and NaN */
    result = u == 0.0 ? wide(-INFINITY) : result;
    result = u == (double)INFINITY ? u : result;
    return u >= 0.0 ? result : wide(NAN);
}
inline dvec logarithm(dvec x) { return special_logarithm(x, logarithm(x, x - 1.0)); }
inline dvec logarithm_of_one_plus(dvec x) { return special_logarithm(x + 1.0, logarithm(x + 1.0, x)); }

/* erfc(z) = exp(-z²) · t · P(t) for 0 ≤ z ≤ 25, where t = 1 / (1 + 0.3 z). P is fitted by least squares of the relative
 * error on 0 ≤ z ≤ 10.7, which is below 10⁻⁹ there. */
inline dvec complementary_error(dvec z) {
    static const double P[] = {0.16927881867407818, 0.16873688686389786, 0.16710245018122652,
                               0.11286288293837825, 0.25821168801282186, -0.26331192873141194,
                               0.74436396259439469, -0.81237118614944582, 0.72701710699412184,
                               -0.32663078442064379, 0.054740102806472873};
    dvec t = 1.0 / (z * 0.3 + 1.0);
    dvec p = wide(P[10]);
    for (int i = 9; i >= 0; i--) p = p * t + P[i];
    return t * p * Exponential(-z * z).value();
}

/* Write the first `bytes` bytes, and zeros up to `all` bytes. A call, because it is needed in many places. */
__attribute__((noinline)) inline const void *padded(void *to, const void *from, size_t bytes, size_t all) {
    memcpy(to, from, bytes);
    memset((char *)to + bytes, 0, all - bytes);
    return to;
}
/* Calls change(out + i, in + i, …) for i = 0, STEP, …; for the last elements, if they are fewer than STEP, with copies
 * that are followed by zeros. `change` is in the code once, which keeps it small. */
template <int STEP, class Change, class Out, class... In>
void in_steps(Out *out, int64_t count, const Change &change, const In *...in) {
    alignas(64) char copies[sizeof...(In)][STEP * 8];
    Out result[STEP], *to = out;
    int64_t rest = count % STEP, end = count - rest;
    for (;;) {
        for (int64_t i = 0; i < end; i += STEP) change(to + i, (in + i)...);
        if (rest == 0 || to == result) break;
        int n = 0;
        ((in = (const In *)padded(copies[n++], in + end, rest * sizeof(In), STEP * sizeof(In))), ...);
        to = result;
        end = STEP;
    }
    if (rest) memcpy(out + (count - rest), result, rest * sizeof(Out));
}
/* Apply a function to each vector of floats. `out` may be an input. */
template <class Function, class... In>
void in_float(float *out, int64_t floats, const Function &function, const In *...in) {
    in_steps<LANES>(out, floats, [&](float *o, const In *...p) { store(o, function(load(p)...)); }, in...);
}
template <class Function, class... In>
void in_double(float *out, int64_t floats, const Function &function, const In *...in) {
    in_steps<HALF>(out, floats, [&](float *o, const In *...p) { store_narrow(o, function(load_wide(p)...)); }, in...);
}

} // namespace fggp
#endif
