#include "runtime/channel_norm.h"

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace fggp {
namespace {

/* Vectors of pixels that are normed together, so that a channel's cache lines are used whole. */
constexpr int BLOCK = 4;
/* Channels whose sum is added to the sum of all: fewer roundings of large sums. */
constexpr int64_t CHANNELS_AT_ONCE = 32;
/* With fewer floats, a task costs more to hand out than to run. */
constexpr int64_t MIN_FLOATS_PER_TASK = 4096;

class ChannelNorm final : public Operation {
  public:
    ChannelNorm(const fggp_tensor &in, const fggp_tensor &out, const float *weight, const float *bias, float epsilon,
                bool centred)
        : in(in), out(out), weight(weight), bias(bias), epsilon(epsilon), centred(centred) {
        bool flat = in.row == in.width && out.row == out.width; /* each plane is one long row */
        rows = flat ? 1 : in.height;
        floats = (flat ? (int64_t)in.height * in.width : in.width) * in.lanes;
        blocks = (floats + BLOCK * LANES - 1) / (BLOCK * LANES);
    }

    int tasks(int threads) const override {
        int64_t all = in.groups * rows * blocks, floats_each = (int64_t)in.channels * BLOCK * LANES;
        return (int)std::max<int64_t>(1, std::min({all, all * floats_each / MIN_FLOATS_PER_TASK, (int64_t)threads * 4}));
    }

    void run(int task, int tasks, const Call &, float *) const override {
        Range range(in.groups * rows * blocks, task, tasks);
        for (int64_t i = range.begin; i < range.end; i++) {
            int64_t group = i / (rows * blocks), y = i / blocks % rows, x = i % blocks * BLOCK * LANES;
            const float *from = in.data + (group * in.group + y * in.row) * in.lanes + x;
            float *to = out.data + (group * out.group + y * out.row) * out.lanes + x;
            int64_t count = std::min<int64_t>(floats - x, BLOCK * LANES);
            switch ((count + LANES - 1) / LANES) {
            case 1: norm<1>(from, to, count); break;
            case 2: norm<2>(from, to, count); break;
            case 3: norm<3>(from, to, count); break;
            default: norm<BLOCK>(from, to, count);
            }
        }
    }

  private:
    /* Σ term(x) over the channels, for V vectors. */
    template <int V, class Term> void sum(const float *from, vec *sums, const Term &term) const {
        int64_t plane = in.plane * in.lanes;
        for (int v = 0; v < V; v++) sums[v] = vec{};
        for (int64_t first = 0; first < in.channels; first += CHANNELS_AT_ONCE) {
            vec parts[V] = {};
            int64_t end = std::min<int64_t>(first + CHANNELS_AT_ONCE, in.channels);
            for (int64_t c = first; c < end; c++)
                for (int v = 0; v < V; v++) parts[v] += term(v, load(from + c * plane + v * LANES));
            for (int v = 0; v < V; v++) sums[v] += parts[v];
        }
    }

    template <int V> void norm(const float *from, float *to, int64_t count) const {
        vec mean[V] = {}, scale[V];
        vec channels = splat((float)in.channels);
        if (centred) {
            sum<V>(from, mean, [](int, vec x) { return x; });
            for (int v = 0; v < V; v++) mean[v] /= channels;
        }
        sum<V>(from, scale, [&](int v, vec x) { return (x - mean[v]) * (x - mean[v]); });
        for (int v = 0; v < V; v++) {
            scale[v] = scale[v] / channels + epsilon;
            for (int k = 0; k < LANES; k++) scale[v][k] = 1 / std::sqrt(scale[v][k]);
        }
        for (int64_t c = 0; c < in.channels; c++) {
            vec times = splat(weight ? weight[c] : 1), plus = splat(bias ? bias[c] : 0);
            const float *x = from + c * in.plane * in.lanes;
            float *y = to + c * out.plane * out.lanes;
            for (int v = 0; v < V; v++) {
                vec normed = (load(x + v * LANES) - mean[v]) * scale[v];
                store_first(y + v * LANES, normed * times + plus, count - v * LANES);
            }
        }
    }

    fggp_tensor in, out;
    const float *weight, *bias;
    float epsilon;
    bool centred;
    int64_t rows, floats, blocks; /* of a plane; of a row */
};

} // namespace

Operation *new_channel_norm(const fggp_tensor &in, const fggp_tensor &out, const float *weight, const float *bias,
                            float epsilon, bool centred) {
    return new ChannelNorm(in, out, weight, bias, epsilon, centred);
}

} // namespace fggp
