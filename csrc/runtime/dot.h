/* Sums of products of four bytes: for each 32-bit number of a vector, sum + x₀·w₀ + x₁·w₁ + x₂·w₂ + x₃·w₃, where the
 * x are from 0 to 255 and the w from -128 to 127. All ways give the same sums, without saturation. */
#ifndef FGGP_DOT_H
#define FGGP_DOT_H

#include "vectors.h"

#if defined(__SSE2__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fggp {

typedef int16_t svec __attribute__((vector_size(LANES * 4)));
typedef uint16_t usvec __attribute__((vector_size(LANES * 4)));

/* For each 32-bit number, the sum of the products of its two 16-bit halves. */
inline ivec multiply_halves(svec a, svec b) {
#if defined(__AVX512BW__)
    return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__wasm_simd128__)
    return (ivec)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    const int16x8_t p = (int16x8_t)a, q = (int16x8_t)b;
    return (ivec)vpaddq_s32(vmull_s16(vget_low_s16(p), vget_low_s16(q)), vmull_high_s16(p, q));
#else
    return ((ivec)a << 16 >> 16) * ((ivec)b << 16 >> 16) + ((ivec)a >> 16) * ((ivec)b >> 16);
#endif
}

/* Any processor: channels 0 and 2, then 1 and 3, in 16 bits each, of which no product of two is saturated. */
struct PlainDot {
    struct Weights {
        svec even, odd;
    };
    static Weights spread(int32_t weights) {
        const svec both = (svec)(weights - ivec{});
        return {both << 8 >> 8, both >> 8};
    }
    static void add(ivec &sum, ivec x, const Weights &w) {
        sum += multiply_halves((svec)x & 255, w.even) + multiply_halves((svec)((usvec)x >> 8), w.odd);
    }
};

#if defined(__AVX512F__)
#define FGGP_HAS_VNNI 1
/* The build is for processors without this instruction too, so the compiler would not emit it by itself. */
struct VnniDot {
    typedef ivec Weights;
    static Weights spread(int32_t weights) { return weights - ivec{}; }
    static void add(ivec &sum, ivec x, Weights w) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w)); }
};
/* Compilers have __builtin_cpu_supports for this, but Zig's answers no to everything. */
inline bool has_vnni() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && ecx & bit_AVX512VNNI;
}
#endif

} // namespace fggp
#endif
