/* Copying the pixels of rows that convolutions read. */
#ifndef FGGP_OPERATORS_PIXELS_H
#define FGGP_OPERATORS_PIXELS_H

#include <algorithm>
#include <cstring>
#include <utility>

#include "vectors.h"

namespace fggp {

/* Every second of 2 · LANES - 1 floats. */
template <int... I> vec load_every_second_exactly(const float *p, std::integer_sequence<int, I...>) {
    const vec a = load(p), b = load(p + LANES - 1);
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (2 * I + (I >= LANES / 2))...);
#else
    return __builtin_shuffle(a, b, ivec{(2 * I + (I >= LANES / 2))...});
#endif
}

/* Copy every `step`-th of the floats from `from` on; no float after the last one is read. */
inline void copy_strided(float *to, const float *from, int64_t count, int64_t step) {
    if (step == 1) {
        for (; count >= LANES; count -= LANES, to += LANES, from += LANES) store(to, load(from));
        return copy_pieces<LANES / 2>(to, from, count);
    }
    if (step == 2)
        for (; count >= LANES; count -= LANES, to += LANES, from += 2 * LANES)
            store(to, load_every_second_exactly(from, std::make_integer_sequence<int, LANES>()));
    for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
}

/* Copy `count` pixels of a row of `width` pixels: those at x, x + step, … They are zero outside of the row. */
inline void copy_pixels(float *to, const float *row, int64_t x, int64_t count, int64_t step, int64_t width) {
    if (x >= 0 && x + (count - 1) * step < width) return copy_strided(to, row + x, count, step);
    auto steps = [&](int64_t pixels) { /* divided and rounded up; dividing by 1 or 2 would take long */
        return pixels <= 0 ? 0 : step <= 2 ? (pixels + step - 1) >> (step - 1) : (pixels + step - 1) / step;
    };
    const int64_t first = std::min(count, steps(-x));
    const int64_t after = std::max(first, std::min(count, steps(width - x)));
    std::fill(to, to + first, 0.0f);
    if (first < after) copy_strided(to + first, row + x + first * step, after - first, step);
    std::fill(to + after, to + count, 0.0f);
}

} // namespace fggp
#endif
