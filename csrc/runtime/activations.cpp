/* Each function is within 2 units in the last place of the exact result, or zero where that is below 1e-35. Most are
 * computed in double precision, which makes that easy. Sigmoid and SiLU, which large networks apply most, are computed
 * in single precision. */
#include "runtime/activations.h"

#include <cmath>

#include "runtime/functions.h"

namespace fggp {
namespace {

/* x · y where y is in [0, 1] and less than 2⁻¹⁵⁰ from `zero_from` down, and x · 0 there: -0 or, for -∞, NaN. */
dvec gated(dvec x, dvec y, double zero_from) { return x * (x < zero_from ? dvec{} : y); }

dvec hard_sigmoid(dvec x) { return limited(x + 3.0, 0, 6) * (1.0 / 6); }

dvec tanh_of(dvec x) {
    dvec e = Exponential(limited(x + x, -50, 50)).minus_one();
    return e / (e + 2.0);
}

dvec gelu_tanh(dvec x) { /* x · sigmoid(2u), where u is what tanh is applied to */
    dvec u = x * 0.79788456080286536 * (x * x * 0.044715 + 1.0);
    return gated(x, 1.0 / (Exponential(limited(-2.0 * u, -700, 700)).value() + 1.0), -30);
}

dvec gelu(dvec x) { /* the share of a normal distribution below x is half of erfc(|x| / √2), or one minus that */
    dvec tail = 0.5 * complementary_error(limited((x < 0.0 ? -x : x) * 0.70710678118654752, 0, 25));
    return gated(x, x < 0.0 ? tail : 1.0 - tail, -30);
}

dvec mish(dvec x) { /* tanh(log(1 + eˣ)) as a fraction in eˣ */
    dvec e = Exponential(limited(x, -350, 350)).value();
    dvec n = e * (e + 2.0);
    return gated(x, n / (n + 2.0), -120);
}

#ifdef FGGP_FMA

vec magnitude(vec v) { return (vec)((ivec)v & 0x7fffffff); }

/* 1 + e⁻ˣ for x ≥ FAST_FROM, rounded little more than once. */
constexpr float FAST_FROM = -80;
vec one_plus_exponential(vec x) {
    FloatExponential e(x > 86.0f ? splat(-86) : -x); /* so that 2ⁿ is no denormal number */
    vec power = e.power();
    vec sum = power + 1.0f;
    vec lost = 1.0f - (sum - power); /* by rounding the sum: not 0 only if 2ⁿ is at least 2²⁴, or 2⁻²⁴ */
    return sum + multiply_add(power, e.rest, lost);
}

vec fast_sigmoid(vec x) { return splat(1) / one_plus_exponential(x); }
vec fast_silu(vec x) { return x / one_plus_exponential(x); }

/* 1 / (1 + e⁻ˣ) = (high + low) · 2^k for any x. */
struct Sigmoid {
    vec high, low;
    ivec k;
    explicit Sigmoid(vec x) {
        vec z = -magnitude(x); /* so that e^z does not overflow */
        FloatExponential parts(z < -110.0f ? splat(-110) : z);
        vec one = splat(1);
        vec e = one + parts.rest, e_low = parts.rest - (e - one); /* e^z = (e + e_low) · 2ⁿ */
        ivec exponent = parts.exponent();
        /* The denominator's second term is nothing if 2ⁿ is below 2⁻¹²⁶. */
        ivec held = exponent < -126 ? ivec{} - 126 : exponent;
        vec power = (vec)((held + 127) << 23);
        vec scaled = e * power; /* exact, unless too small to matter */
        vec denominator = one + scaled;
        vec lost = (scaled - (denominator - one)) + e_low * power;
        vec numerator = x < 0 ? e : one, numerator_low = x < 0 ? e_low : vec{};
        vec inverse = one / denominator;
        high = numerator * inverse;
        low = (multiply_add(-high, denominator, numerator) + multiply_add(-high, lost, numerator_low)) * inverse;
        k = x < 0 ? exponent : ivec{};
    }
    /* v · 2^k, rounded once: in two steps, because 2^k may be below the smallest normal number. */
    vec scaled(vec v) const {
        ivec first = k >> 1;
        return v * (vec)((first + 127) << 23) * (vec)((k - first + 127) << 23);
    }
};

vec sigmoid(vec x) {
    Sigmoid s(x);
    return s.scaled(s.high + s.low);
}

vec silu(vec x) {
    Sigmoid s(x);
    vec y = s.scaled(multiply_add(x, s.high, x * s.low));
    y = x > 110.0f ? x : y;
    return x < -110.0f ? x * 0.0f : y; /* -0 or, for -∞, NaN */
}

#else /* what a float loses by rounding cannot be told without a fused product and sum */

dvec sigmoid(dvec x) { return 1.0 / (Exponential(limited(-x, -700, 700)).value() + 1.0); }
dvec silu(dvec x) { return gated(x, sigmoid(x), -120); }

#endif

#ifdef FGGP_FMA

bool all_from(float least, const float *data, int64_t floats) {
    vec below = {};
    int64_t i = 0;
    for (; i + LANES <= floats; i += LANES) below = load(data + i) < least ? splat(1) : below;
    float any = 0;
    for (int k = 0; k < LANES; k++) any += below[k];
    for (; i < floats; i++) any += data[i] < least;
    return any == 0;
}

template <class Fast, class Any> void in_float_if_fast(float *data, int64_t floats, const Fast &fast, const Any &any) {
    if (all_from(FAST_FROM, data, floats))
        in_float(data, floats, fast, data);
    else
        in_float(data, floats, any, data);
}
void apply_sigmoid(float *data, int64_t floats) { in_float_if_fast(data, floats, fast_sigmoid, sigmoid); }
void apply_silu(float *data, int64_t floats) { in_float_if_fast(data, floats, fast_silu, silu); }

#else

void apply_sigmoid(float *data, int64_t floats) { in_double(data, floats, sigmoid, data); }
void apply_silu(float *data, int64_t floats) { in_double(data, floats, silu, data); }

#endif

} // namespace

Activation::Activation(const fggp_activation &function)
    : clamps(function.kind == FGGP_CLAMP), relu(clamps && function.a == 0 && function.b == INFINITY),
      follows(function.kind != FGGP_IDENTITY && !clamps), function(function), low((float)function.a),
      high((float)function.b), keeps_zero(function.kind != FGGP_SIGMOID && function.kind != FGGP_HARD_SIGMOID) {}

void Activation::apply(float *data, int64_t floats, const int32_t *mask) const {
    double a = function.a, b = function.b, c = function.c;
    switch (function.kind) {
    case FGGP_LEAKY_RELU: in_double(data, floats, [&](dvec x) { return x < 0.0 ? x * a : x; }, data); break;
    case FGGP_ELU:
        in_double(
            data, floats,
            [&](dvec x) { return x > 0.0 ? x * b : Exponential(limited(x * c, -700, 700)).minus_one() * a; }, data);
        break;
    case FGGP_HARD_SIGMOID: in_double(data, floats, hard_sigmoid, data); break;
    case FGGP_HARD_SWISH: in_double(data, floats, [&](dvec x) { return x * hard_sigmoid(x); }, data); break;
    case FGGP_SIGMOID: apply_sigmoid(data, floats); break;
    case FGGP_SILU: apply_silu(data, floats); break;
    case FGGP_TANH: in_double(data, floats, tanh_of, data); break;
    case FGGP_GELU: in_double(data, floats, gelu, data); break;
    case FGGP_GELU_TANH: in_double(data, floats, gelu_tanh, data); break;
    case FGGP_MISH: in_double(data, floats, mish, data); break;
    }
    if (mask && !keeps_zero) {
        int32_t *bits = (int32_t *)data;
        for (int64_t i = 0; i < floats; i++) bits[i] &= mask[i];
    }
}

void Activation::apply_to_plane(float *data, int64_t height, int64_t width, int64_t row) const {
    if (keeps_zero) return apply(data, (height - 1) * row + width, nullptr); /* faster, as rows may be short */
    for (int64_t y = 0; y < height; y++) apply(data + y * row, width, nullptr);
}

} // namespace fggp
