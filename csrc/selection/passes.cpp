#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "fggp.h"
#include "threads/parallel.h"
#include "vectors.h"

using namespace fggp;

namespace {

constexpr int CHUNK = 4096;                /* weights: their keys stay in the first-level cache until they are used */
constexpr int64_t TASK = 16 * CHUNK;       /* weights that a thread processes at a time: long enough to prefetch */
/* Stands for a missing gradient of any type. Never written, but if it were const, it would take room in the file. */
alignas(64) float zeros[CHUNK];

/* Scores are compared by their keys, integers in the same order: compilers vectorize comparisons of integers on every
 * processor, but those of floats could trap. All scores of a pass have one sign, so a key is the bits of the absolute
 * value, or the complement of these bits if scores are negative. EXCLUDED, the greatest key, stands for NaN and for
 * weights with another mark. */
constexpr int32_t EXCLUDED = INT_MAX;
constexpr int32_t INFINITE = 0x7f800000;
constexpr int32_t NOT_SIGN = 0x7fffffff; /* all bits of a float except its sign */

inline int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The key of a bound. A bound of the other sign is before or after all scores, but −0 equals +0. */
int32_t key_of(float bound, bool negated) {
    int32_t bits = bits_of(bound == 0 ? (negated ? -0.0f : 0.0f) : bound);
    return bits < 0 ? bits ^ NOT_SIGN : bits;
}

struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* The key of |x|, or of −|x| where flip is −1. */
inline int32_t key_of_absolute(float x, bool ranked, int32_t flip) {
    int32_t bits = bits_of(x) & NOT_SIGN;
    return ranked & (bits <= INFINITE) ? bits ^ flip : EXCLUDED;
}

template <class Real>
void find_keys(const Real *x, const uint8_t *marks, uint8_t among, int32_t flip, int n, int32_t *__restrict keys) {
    for (int i = 0; i < n; i++) keys[i] = key_of_absolute(to_float(x[i]), marks[i] == among, flip);
}

template <class Real>
void find_keys(const Real *x, const Real *y, const uint8_t *marks, uint8_t among, int32_t flip, int n,
               int32_t *__restrict keys) {
    for (int i = 0; i < n; i++) keys[i] = key_of_absolute(to_float(x[i]) * to_float(y[i]), marks[i] == among, flip);
}

/* The keys of the weights start … start + n - 1 of a layer. */
template <class Real>
void find_keys(const fggp_layer &layer, fggp_score score, uint8_t among, int64_t start, int n, int32_t *keys) {
    const Real *weight = (const Real *)layer.weight + start;
    const Real *grad = layer.grad ? (const Real *)layer.grad + start : (const Real *)zeros;
    const uint8_t *marks = layer.marks + start;
    int32_t flip = score.negated ? -1 : 0;
    if (score.quantity == FGGP_PRODUCT)
        find_keys(weight, grad, marks, among, flip, n, keys);
    else
        find_keys(score.quantity == FGGP_WEIGHT ? weight : grad, marks, among, flip, n, keys);
}

/* The weights with a certain mark, in chunks that any number of threads share. */
class RankedWeights {
  public:
    RankedWeights(const fggp_layer *layers, int32_t count, fggp_score score, uint8_t among)
        : layers(layers), count(count), score(score), among(among) {
        for (int32_t i = 0; i < count; i++) tasks += tasks_of(layers[i]);
    }

    /* Call use(marks, keys, n) for the chunks that this thread takes, until none is left. Weights with another mark
     * have the key EXCLUDED. A chunk without ranked weights is skipped: only its marks are read. */
    template <class Use> void for_each_chunk(const Use &use) {
        alignas(64) int32_t keys[CHUNK];
        int64_t before = 0; /* tasks in the layers before this one */
        int32_t i = 0;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            for (; task >= before + tasks_of(layers[i]); i++) before += tasks_of(layers[i]);
            const fggp_layer &layer = layers[i];
            int64_t start = (task - before) * TASK, end = std::min(start + TASK, layer.count);
            for (; start < end; start += CHUNK) {
                int n = (int)std::min<int64_t>(CHUNK, end - start);
                uint8_t *marks = layer.marks + start;
                if (!std::memchr(marks, among, n)) continue;
                if (layer.type == FGGP_BFLOAT16)
                    find_keys<bfloat16>(layer, score, among, start, n, keys);
                else
                    find_keys<float>(layer, score, among, start, n, keys);
                use(marks, keys, n);
            }
        }
    }

    int64_t tasks = 0;

  private:
    static int64_t tasks_of(const fggp_layer &layer) { return (layer.count + TASK - 1) / TASK; }

    const fggp_layer *layers;
    int32_t count;
    fggp_score score;
    uint8_t among;
    std::atomic<int64_t> next{0};
};

/* A bit for each lane: whether it is not zero. */
inline uint32_t lanes_of(ivec v) {
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)v);
#elif defined(__SSE2__)
    return (uint32_t)_mm_movemask_ps((__m128)v);
#else
    uint32_t lanes = 0;
    for (int i = 0; i < LANES; i++) lanes |= (uint32_t)(v[i] & 1) << i;
    return lanes;
#endif
}

inline int64_t sum(ivec v) {
    int64_t total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

/* Count the keys around a and b, and move those strictly between to the front. Returns the number of these.
 * The array must have room to fill up its last vector. */
int count_and_pack(int32_t *keys, int n, int32_t a, int32_t b, fggp_counts &counts) {
    ivec below_a{}, at_a{}, at_b{};
    /* The vectors with a key strictly between. They are few; listing them first avoids mispredicted branches. */
    struct {
        uint16_t start, lanes;
    } between[CHUNK / LANES];
    int found = 0;
    for (; n % LANES; n++) keys[n] = EXCLUDED;
    for (int i = 0; i < n; i += LANES) {
        ivec key = *(const loose_ivec *)(keys + i);
        below_a -= key < a;
        at_a -= key == a;
        at_b -= key == b;
        uint32_t lanes = lanes_of((key > a) & (key < b));
        between[found] = {(uint16_t)i, (uint16_t)lanes};
        found += lanes != 0;
    }
    counts.below_a += sum(below_a);
    counts.at_a += sum(at_a);
    counts.at_b += a == b ? 0 : sum(at_b);
    int packed = 0;
    for (int i = 0; i < found; i++)
        for (uint32_t lanes = between[i].lanes; lanes; lanes &= lanes - 1)
            keys[packed++] = keys[between[i].start + __builtin_ctz(lanes)];
    return packed;
}

struct Survey {
    RankedWeights weights;
    bool negated;
    int32_t a, b; /* keys */
    float *inside;
    int64_t capacity;
    std::atomic<int64_t> below_a{0}, at_a{0}, gathered{0}, at_b{0};

    void work() {
        fggp_counts counts{};
        weights.for_each_chunk([&](const uint8_t *, int32_t *keys, int n) {
            gather(keys, count_and_pack(keys, n, a, b, counts));
        });
        below_a.fetch_add(counts.below_a, std::memory_order_relaxed);
        at_a.fetch_add(counts.at_a, std::memory_order_relaxed);
        at_b.fetch_add(counts.at_b, std::memory_order_relaxed);
    }

  private:
    void gather(int32_t *keys, int found) {
        if (found == 0) return;
        for (int i = 0; negated && i < found; i++) keys[i] ^= NOT_SIGN;
        int64_t place = gathered.fetch_add(found, std::memory_order_relaxed);
        int64_t fit = std::min<int64_t>(found, capacity - place);
        if (fit > 0) std::memcpy(inside + place, keys, fit * sizeof(float));
    }
};

struct Cut {
    RankedWeights weights;
    int32_t threshold; /* a key */
    uint8_t among, equal;

    void work() {
        weights.for_each_chunk([&](uint8_t *marks, const int32_t *keys, int n) {
            mark(threshold, among, equal, keys, n, marks);
        });
    }

  private:
    /* GCC vectorizes this only if it is not inlined and loads nothing conditionally. */
    __attribute__((noinline)) static void mark(int32_t threshold, uint8_t among, uint8_t equal,
                                               const int32_t *__restrict keys, int n, uint8_t *__restrict marks) {
        for (int i = 0; i < n; i++) {
            uint8_t less = keys[i] < threshold, tied = keys[i] == threshold ? equal : 0;
            uint8_t ranked = marks[i] == among ? 0xff : 0;
            marks[i] = ((less | tied) & ranked) | (marks[i] & ~ranked);
        }
    }
};

/* A sample of the scores, drawn at points that are spread evenly over each layer. */
struct Draw {
    const fggp_layer *layers;
    int32_t count;
    fggp_score score;
    uint8_t among;
    double share;
    float *values;
    int64_t tasks = 0;
    std::atomic<int64_t> next{0}, drawn{0};

    static constexpr int POINTS = 1024; /* that a thread processes at a time */

    int64_t points_of(const fggp_layer &layer) const { return (int64_t)std::ceil(share * (double)layer.count); }
    int64_t tasks_of(const fggp_layer &layer) const { return (points_of(layer) + POINTS - 1) / POINTS; }

    void work() {
        int64_t before = 0; /* tasks in the layers before this one */
        int32_t i = 0;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            for (; task >= before + tasks_of(layers[i]); i++) before += tasks_of(layers[i]);
            const fggp_layer &layer = layers[i];
            int64_t start = (task - before) * POINTS, end = std::min(start + POINTS, points_of(layer));
            if (layer.type == FGGP_BFLOAT16)
                draw<bfloat16>(layer, start, end);
            else
                draw<float>(layer, start, end);
        }
    }

  private:
    template <class Real> void draw(const fggp_layer &layer, int64_t start, int64_t end) {
        float found[POINTS];
        int n = 0;
        for (int64_t point = start; point < end; point++) {
            /* Multiples of the golden ratio, modulo 1, spread evenly and follow no stride of the tensor. */
            double turns = (double)point * 0.6180339887498949;
            int64_t index = std::min((int64_t)((turns - std::floor(turns)) * (double)layer.count), layer.count - 1);
            if (layer.marks[index] != among) continue;
            float weight = to_float(((const Real *)layer.weight)[index]);
            float grad = layer.grad ? to_float(((const Real *)layer.grad)[index]) : 0;
            float x = score.quantity == FGGP_WEIGHT ? weight : score.quantity == FGGP_GRADIENT ? grad : weight * grad;
            if (x != x) continue;
            found[n++] = score.negated ? -std::fabs(x) : std::fabs(x);
        }
        std::memcpy(values + drawn.fetch_add(n, std::memory_order_relaxed), found, n * sizeof(float));
    }
};

template <class Pass> int32_t run(Pass &pass, int64_t tasks, int32_t threads) {
    Work work = [](void *context, int, int) { ((Pass *)context)->work(); };
    threads = (int32_t)std::min<int64_t>(threads, tasks);
    return without_throwing([&] { run_on_threads(work, &pass, threads); });
}

} // namespace

extern "C" {

int32_t fggp_survey(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float a, float b,
                    float *inside, int64_t capacity, int32_t threads, fggp_counts *counts) {
    bool negated = score.negated;
    int32_t low = key_of(a, negated), high = key_of(b, negated);
    Survey survey{{layers, count, score, (uint8_t)among}, negated, low, high, inside, capacity};
    if (run(survey, survey.weights.tasks, threads)) return 1;
    *counts = {survey.below_a, survey.at_a, survey.gathered, survey.at_b};
    return 0;
}

int32_t fggp_cut(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float value, int32_t equal,
                 int32_t threads) {
    Cut cut{{layers, count, score, (uint8_t)among}, key_of(value, score.negated), (uint8_t)among, (uint8_t)equal};
    return run(cut, cut.weights.tasks, threads);
}

int32_t fggp_draw(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, double share, float *values,
                  int32_t threads, int64_t *drawn) {
    Draw draw{layers, count, score, (uint8_t)among, share, values};
    for (int32_t i = 0; i < count; i++) draw.tasks += draw.tasks_of(layers[i]);
    if (run(draw, draw.tasks, threads)) return 1;
    *drawn = draw.drawn;
    return 0;
}
}
