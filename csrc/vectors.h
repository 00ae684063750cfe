/* The vector types of the processor that this build is for. */
#ifndef FGGP_VECTORS_H
#define FGGP_VECTORS_H

#include <stdint.h>
#include <string.h>

#include <utility>

#if defined(__AVX512F__)
#define FGGP_CPU "avx512"
#define FGGP_LANES 16
#define FGGP_REGISTERS 16
#elif defined(__AVX2__)
#define FGGP_CPU "avx2"
#define FGGP_LANES 8
#define FGGP_REGISTERS 12
#else
#define FGGP_CPU "generic"
#define FGGP_LANES 4
#define FGGP_REGISTERS 8
#endif

namespace fggp {

constexpr int LANES = FGGP_LANES;
constexpr int REGISTERS = FGGP_REGISTERS; /* vector registers that sums may occupy */

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
/* The same types at unaligned addresses: rows of single images may start anywhere. */
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t loose_ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline vec load(const float *p) { return *(const loose_vec *)p; }
inline void store(float *p, vec v) { *(loose_vec *)p = v; }
template <int... I> vec every_second_of(vec a, vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (2 * I)...);
#else
    return __builtin_shuffle(a, b, ivec{(2 * I)...});
#endif
}
/* A vector of every second float. */
inline vec load_every_second(const float *p) {
    return every_second_of(load(p), load(p + LANES), std::make_integer_sequence<int, LANES>());
}
/* Copy `count` floats, fewer than 2 · N, in pieces of N, N / 2, … 1. */
template <int N> inline void copy_pieces(float *to, const float *from, int64_t count) {
    if (count & N) {
        memcpy(to, from, N * sizeof(float));
        to += N, from += N;
    }
    if constexpr (N > 1) copy_pieces<N / 2>(to, from, count);
}
/* Store the first `count` floats of a vector, or all if it has no more. */
inline void store_first(float *p, vec v, int64_t count) {
    if (count >= LANES) return store(p, v);
    float all[LANES];
    store(all, v);
    copy_pieces<LANES / 2>(p, all, count);
}
inline vec splat(float x) { return x - vec{}; }

} // namespace fggp
#endif
