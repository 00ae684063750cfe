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

constexpr int CHUNK = 4096;                /* weights whose keys stay in the first-level cache until they are used */
constexpr int64_t TASK = 16 * CHUNK;       /* weights that a thread takes at a time: long stretches are fetched ahead */
alignas(64) const float zeros[CHUNK] = {}; /* in place of a gradient that is not there, whatever its type */

/* Scores are compared as integers in the same order, their keys: compilers make vectors of such comparisons on every
 * processor, while those of floats could trap. All scores have one sign, so a key is the bits of their size, or the
 * complement of these for negative scores. What is not a member or not a number comes after everything. */
constexpr int32_t NOWHERE = INT_MAX;
constexpr int32_t INFINITE = 0x7f800000;
constexpr int32_t SIZE = 0x7fffffff; /* the bits of a float but its sign */

inline int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The key of a bound. It may have the other sign, and then comes before or after all scores; but zeros are equal. */
int32_t key_of(float bound, bool negated) {
    int32_t bits = bits_of(bound == 0 ? (negated ? -0.0f : 0.0f) : bound);
    return bits < 0 ? bits ^ SIZE : bits;
}

struct bfloat16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline int32_t key_of_size(float x, bool member, int32_t flip) {
    int32_t size = bits_of(x) & SIZE;
    return member & (size <= INFINITE) ? size ^ flip : NOWHERE;
}

template <class Real>
void find_keys(const Real *x, const uint8_t *marks, uint8_t among, int32_t flip, int n, int32_t *__restrict keys) {
    for (int i = 0; i < n; i++) keys[i] = key_of_size(wide(x[i]), marks[i] == among, flip);
}

template <class Real>
void find_keys(const Real *x, const Real *y, const uint8_t *marks, uint8_t among, int32_t flip, int n,
               int32_t *__restrict keys) {
    for (int i = 0; i < n; i++) keys[i] = key_of_size(wide(x[i]) * wide(y[i]), marks[i] == among, flip);
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

/* The weights with a certain mark, for any number of threads to share. */
class Members {
  public:
    Members(const fggp_layer *layers, int32_t count, fggp_score score, uint8_t among)
        : layers(layers), count(count), score(score), among(among) {
        for (int32_t i = 0; i < count; i++) tasks += tasks_of(layers[i]);
    }

    /* Call use(marks, keys, n) for one chunk after the other, each on one thread only, with NOWHERE for what is no
     * member. A chunk without members is left out: nothing but its marks is read. */
    template <class Use> void each(const Use &use) {
        alignas(64) int32_t keys[CHUNK];
        int64_t before = 0; /* tasks in the layers that are behind */
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

/* Which lanes are not zero, a bit each. */
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

/* Count keys around a and b, and move those strictly between to the front. Returns how many these are.
 * There is room for a whole vector where the last key is. */
int count_and_pack(int32_t *keys, int n, int32_t a, int32_t b, fggp_counts &counts) {
    ivec below_a{}, at_a{}, at_b{};
    /* The vectors with such a key. They are few, so they are noted first: no branch is mispredicted. */
    struct {
        uint16_t start, lanes;
    } between[CHUNK / LANES];
    int some = 0;
    for (; n % LANES; n++) keys[n] = NOWHERE;
    for (int i = 0; i < n; i += LANES) {
        ivec key = *(const loose_ivec *)(keys + i);
        below_a -= key < a;
        at_a -= key == a;
        at_b -= key == b;
        uint32_t lanes = lanes_of((key > a) & (key < b));
        between[some] = {(uint16_t)i, (uint16_t)lanes};
        some += lanes != 0;
    }
    counts.below_a += sum(below_a);
    counts.at_a += sum(at_a);
    counts.at_b += a == b ? 0 : sum(at_b);
    int packed = 0;
    for (int i = 0; i < some; i++)
        for (uint32_t lanes = between[i].lanes; lanes; lanes &= lanes - 1)
            keys[packed++] = keys[between[i].start + __builtin_ctz(lanes)];
    return packed;
}

struct Survey {
    Members members;
    bool negated;
    int32_t a, b; /* keys */
    float *inside;
    int64_t room;
    std::atomic<int64_t> below_a{0}, at_a{0}, gathered{0}, at_b{0};

    void work() {
        fggp_counts counts{};
        members.each([&](const uint8_t *, int32_t *keys, int n) {
            gather(keys, count_and_pack(keys, n, a, b, counts));
        });
        below_a.fetch_add(counts.below_a, std::memory_order_relaxed);
        at_a.fetch_add(counts.at_a, std::memory_order_relaxed);
        at_b.fetch_add(counts.at_b, std::memory_order_relaxed);
    }

  private:
    void gather(int32_t *keys, int found) {
        if (found == 0) return;
        for (int i = 0; negated && i < found; i++) keys[i] ^= SIZE;
        int64_t place = gathered.fetch_add(found, std::memory_order_relaxed);
        int64_t fit = std::min<int64_t>(found, room - place);
        if (fit > 0) std::memcpy(inside + place, keys, fit * sizeof(float));
    }
};

struct Cut {
    Members members;
    int32_t at; /* a key */
    uint8_t among, equal;

    void work() {
        members.each([&](uint8_t *marks, const int32_t *keys, int n) { mark(at, among, equal, keys, n, marks); });
    }

  private:
    /* Not inlined and without a choice what to load: otherwise GCC finds no way to make vectors of it. */
    __attribute__((noinline)) static void mark(int32_t at, uint8_t among, uint8_t equal, const int32_t *__restrict keys,
                                               int n, uint8_t *__restrict marks) {
        for (int i = 0; i < n; i++) {
            uint8_t less = keys[i] < at, tied = keys[i] == at ? equal : 0, member = marks[i] == among ? 0xff : 0;
            marks[i] = ((less | tied) & member) | (marks[i] & ~member);
        }
    }
};

/* Weights looked at here and there: what a pass reads of a layer, a few at a time. */
struct Draw {
    const fggp_layer *layers;
    int32_t count;
    fggp_score score;
    uint8_t among;
    double share;
    float *values;
    int64_t tasks = 0;
    std::atomic<int64_t> next{0}, drawn{0};

    static constexpr int POINTS = 1024; /* that a thread looks at at a time */

    int64_t points_of(const fggp_layer &layer) const { return (int64_t)std::ceil(share * (double)layer.count); }
    int64_t tasks_of(const fggp_layer &layer) const { return (points_of(layer) + POINTS - 1) / POINTS; }

    void work() {
        int64_t before = 0; /* tasks in the layers that are behind */
        int32_t i = 0;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            for (; task >= before + tasks_of(layers[i]); i++) before += tasks_of(layers[i]);
            const fggp_layer &layer = layers[i];
            int64_t start = (task - before) * POINTS, end = std::min(start + POINTS, points_of(layer));
            if (layer.type == FGGP_BFLOAT16)
                look<bfloat16>(layer, start, end);
            else
                look<float>(layer, start, end);
        }
    }

  private:
    template <class Real> void look(const fggp_layer &layer, int64_t start, int64_t end) {
        float found[POINTS];
        int some = 0;
        for (int64_t point = start; point < end; point++) {
            /* Multiples of the golden ratio, modulo 1, spread evenly and follow no stride of the tensor. */
            double turns = (double)point * 0.6180339887498949;
            int64_t place = std::min((int64_t)((turns - std::floor(turns)) * (double)layer.count), layer.count - 1);
            if (layer.marks[place] != among) continue;
            float weight = wide(((const Real *)layer.weight)[place]);
            float grad = layer.grad ? wide(((const Real *)layer.grad)[place]) : 0;
            float of = score.quantity == FGGP_WEIGHT ? weight : score.quantity == FGGP_GRADIENT ? grad : weight * grad;
            if (of != of) continue;
            found[some++] = score.negated ? -std::fabs(of) : std::fabs(of);
        }
        std::memcpy(values + drawn.fetch_add(some, std::memory_order_relaxed), found, some * sizeof(float));
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
                    float *inside, int64_t room, int32_t threads, fggp_counts *counts) {
    bool negated = score.negated;
    int32_t low = key_of(a, negated), high = key_of(b, negated);
    Survey survey{{layers, count, score, (uint8_t)among}, negated, low, high, inside, room};
    if (run(survey, survey.members.tasks, threads)) return 1;
    *counts = {survey.below_a, survey.at_a, survey.gathered, survey.at_b};
    return 0;
}

int32_t fggp_cut(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float value, int32_t equal,
                 int32_t threads) {
    Cut cut{{layers, count, score, (uint8_t)among}, key_of(value, score.negated), (uint8_t)among, (uint8_t)equal};
    return run(cut, cut.members.tasks, threads);
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
