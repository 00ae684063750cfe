/* Activations' numbers, float32 or bfloat16, as vectors of float32. */
#ifndef FGGP_TRAINING_NUMBERS_H
#define FGGP_TRAINING_NUMBERS_H

#include "vectors.h"

namespace fggp {

struct bfloat16 {
    uint16_t bits;
};
typedef uint16_t narrow_vec __attribute__((vector_size(LANES * 2)));
typedef uint16_t loose_narrow_vec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));

inline vec load_wide(const float *p) { return load(p); }
inline vec load_wide(const bfloat16 *p) {
    return (vec)(__builtin_convertvector((narrow_vec) * (const loose_narrow_vec *)p, uvec) << 16);
}
inline void store_as(float *p, vec v) { store(p, v); }
/* Rounded to the nearest, halves to even; NaN stays NaN. */
inline void store_as(bfloat16 *p, vec v) {
    const uvec bits = (uvec)v, rounded = bits + 0x7fff + ((bits >> 16) & 1), nan = bits | 0x400000;
    const uvec is_nan = (uvec)(v != v);
    *(loose_narrow_vec *)p = __builtin_convertvector(((rounded & ~is_nan) | (nan & is_nan)) >> 16, narrow_vec);
}
/* The first `count` numbers of a vector; the others are 0. */
template <class Number> vec load_some(const Number *p, int64_t count) {
    if (count >= LANES) return load_wide(p);
    Number all[LANES] = {};
    for (int64_t i = 0; i < count; i++) all[i] = p[i];
    return load_wide(all);
}
template <class Number> void store_some(Number *p, vec v, int64_t count) {
    if (count >= LANES) return store_as(p, v);
    Number all[LANES];
    store_as(all, v);
    for (int64_t i = 0; i < count; i++) p[i] = all[i];
}
inline float sum_of(vec v) {
    float all[LANES];
    store(all, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) all[i] += all[i + half];
    return all[0];
}

} // namespace fggp
#endif
