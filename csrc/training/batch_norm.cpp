/* Batch norm in training. A channel's numbers adjoin, so that its statistics and what is made with them read each
 * channel while it is in the cache. */
#include <algorithm>
#include <atomic>
#include <cmath>

#include "fggp.h"
#include "threads/parallel.h"
#include "training/numbers.h"
#include "training/training.h"

namespace fggp {
namespace {

/* Numbers whose sums are made in float32: they fit the first-level cache. Sums of blocks are added in float64. */
constexpr int64_t BLOCK = 4096;
/* Vectors that are added up side by side, so that no addition waits for the one before. */
constexpr int CHAINS = 4;

/* Σ term(i, count) over the numbers from `begin` to before `end`, where term's vector starts at number i and its numbers
 * from `count` on do not count. N sums at once. */
template <int N, class Term> void add_up(int64_t begin, int64_t end, const Term &term, float (&sums)[N]) {
    vec parts[CHAINS][N] = {};
    int64_t i = begin;
    for (; i + CHAINS * LANES <= end; i += CHAINS * LANES)
#pragma GCC unroll 4
        for (int chain = 0; chain < CHAINS; chain++) term(i + chain * LANES, LANES, parts[chain]);
    for (; i < end; i += LANES) term(i, end - i, parts[0]);
    for (int n = 0; n < N; n++) sums[n] = sum_of((parts[0][n] + parts[1][n]) + (parts[2][n] + parts[3][n]));
}

/* The vector with 0 in its lanes from `count` on. */
inline vec first_lanes(vec v, int64_t count) {
    if (count >= LANES) return v;
    float all[LANES] = {};
    store_first(all, v, count);
    return load(all);
}

/* Mean and variance of one channel. Blocks' squared deviations from their own means are combined as Chan, Golub and
 * LeVeque (1979) do, so numbers far from zero lose no digits. */
template <class Number> void statistics(const Number *x, int64_t count, double &mean, double &variance) {
    double squares = 0;
    mean = 0;
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = std::min(begin + BLOCK, count);
        const double size = (double)(end - begin);
        float sum[1], apart[2]; /* Σ x; then Σ (x - middle) and Σ (x - middle)², where `middle` is nearly the mean */
        add_up(begin, end, [&](int64_t i, int64_t some, vec *to) { to[0] += load_some(x + i, some); }, sum);
        const float middle = (float)(sum[0] / size);
        add_up(begin, end, [&](int64_t i, int64_t some, vec *to) {
            const vec deviation = first_lanes(load_some(x + i, some) - splat(middle), some);
            to[0] += deviation;
            to[1] += deviation * deviation;
        }, apart);
        const double further = middle + apart[0] / size - mean; /* this block's mean than that of all before */
        squares += apart[1] - apart[0] * (apart[0] / size) + further * further * size * ((double)begin / end);
        mean += further * (size / end);
    }
    variance = std::max(squares, 0.0) / count;
}

float scale_for(float variance, float epsilon) { return (float)(1 / std::sqrt((double)variance + epsilon)); }

/* Calls channel(c) for each channel, on several threads. */
template <class Channel> void for_each_channel(int64_t channels, int threads, const Channel &channel) {
    struct Shared {
        const Channel &channel;
        const int64_t channels;
        std::atomic<int64_t> next{0};
    } shared{channel, channels};
    Work work = [](void *context, int, int) {
        auto &shared = *(Shared *)context;
        for (int64_t c; (c = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.channels;) shared.channel(c);
    };
    run_on_threads(work, &shared, (int)std::min<int64_t>(threads, channels));
}

template <class Number> void normalise(const fggp_batch_norm &norm, const Number *all_x, int threads, Number *all_y, float *means, float *variances) {
    for_each_channel(norm.channels, threads, [&](int64_t channel) {
        const Number *x = all_x + channel * norm.count;
        Number *y = all_y + channel * norm.count;
        double mean, variance;
        statistics(x, norm.count, mean, variance);
        means[channel] = (float)mean, variances[channel] = (float)variance;
        const float factor = scale_for(variances[channel], norm.epsilon) * (norm.weight ? norm.weight[channel] : 1);
        const vec center = splat(means[channel]), scale = splat(factor), bias = splat(norm.bias ? norm.bias[channel] : 0);
        for (int64_t i = 0; i < norm.count; i += LANES)
            store_some(y + i, (load_some(x + i, norm.count - i) - center) * scale + bias, norm.count - i);
    });
}

/* With s = 1 / √(variance + ε), normalised numbers n = (x - mean) · s, and E the mean over a channel:
 * db = Σ dy, dw = Σ dy · n, dx = weight · s · (dy - E[dy] - n · E[dy · n]). */
template <class Number>
void gradients(const fggp_batch_norm &norm, const Number *all_x, const Number *all_dy, const float *means, const float *variances, int threads,
               Number *all_dx, float *dw, float *db) {
    for_each_channel(norm.channels, threads, [&](int64_t channel) {
        const Number *x = all_x + channel * norm.count, *dy = all_dy + channel * norm.count;
        const vec center = splat(means[channel]);
        const float scale = scale_for(variances[channel], norm.epsilon);
        double sum = 0, product = 0; /* of dy, and of dy and x - mean */
        for (int64_t begin = 0; begin < norm.count; begin += BLOCK) {
            float sums[2];
            add_up(begin, std::min(begin + BLOCK, norm.count), [&](int64_t i, int64_t some, vec *to) {
                const vec gradient = load_some(dy + i, some); /* 0 beyond the last */
                to[0] += gradient;
                to[1] += gradient * (load_some(x + i, some) - center);
            }, sums);
            sum += sums[0], product += sums[1];
        }
        if (db) db[channel] = (float)sum;
        if (dw) dw[channel] = (float)(product * scale);
        if (!all_dx) return;
        Number *dx = all_dx + channel * norm.count;
        const vec factor = splat(scale * (norm.weight ? norm.weight[channel] : 1)), middle = splat((float)(sum / norm.count));
        const vec slope = splat((float)(product / norm.count * scale * scale));
        for (int64_t i = 0; i < norm.count; i += LANES) {
            const vec apart = load_some(x + i, norm.count - i) - center;
            store_some(dx + i, factor * (load_some(dy + i, norm.count - i) - middle - apart * slope), norm.count - i);
        }
    });
}

} // namespace
} // namespace fggp

using namespace fggp;

int32_t fggp_batch_norm_forward(const fggp_batch_norm *norm, const void *x, int32_t type, int32_t threads, void *y, float *mean,
                                float *variance) {
    return without_throwing([&] {
        if (type == FGGP_BFLOAT16) normalise(*norm, (const bfloat16 *)x, threads, (bfloat16 *)y, mean, variance);
        else normalise(*norm, (const float *)x, threads, (float *)y, mean, variance);
    });
}

int32_t fggp_batch_norm_backward(const fggp_batch_norm *norm, const void *x, const void *dy, int32_t type, const float *mean,
                                 const float *variance, int32_t threads, void *dx, float *dw, float *db) {
    return without_throwing([&] {
        if (type == FGGP_BFLOAT16)
            gradients(*norm, (const bfloat16 *)x, (const bfloat16 *)dy, mean, variance, threads, (bfloat16 *)dx, dw, db);
        else gradients(*norm, (const float *)x, (const float *)dy, mean, variance, threads, (float *)dx, dw, db);
    });
}
