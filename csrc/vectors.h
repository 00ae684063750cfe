/* The vector types of the processor that this build is for. */
#ifndef FGGP_VECTORS_H
#define FGGP_VECTORS_H

#include <stdint.h>

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
inline vec splat(float x) { return x - vec{}; }

} // namespace fggp
#endif
