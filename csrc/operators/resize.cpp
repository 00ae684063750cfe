/* Images of another size, of 1 to 3 dimensions: each output pixel is a weighted sum of some input pixels along each
 * dimension. */
#include <algorithm>
#include <array>
#include <cmath>

#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "vectors.h"

namespace fggp {
namespace {

constexpr int AXES = 3;       /* planes, rows, columns; a dimension that a tensor lacks has size 1 */
constexpr int MOST_TAPS = 16; /* input rows that an output row is made of: 4 planes × 4 rows */

/* A dimension: output i is the sum of `taps` inputs, index[taps * i + k] times weight[taps * i + k]. */
struct Resampling {
    int64_t in = 1, out = 1;
    int taps = 1; /* 1: the weights are 1 */
    std::vector<int32_t> index = {0};
    std::vector<float> weight = {1};
};
typedef std::array<Resampling, AXES> Resamplings;

struct Mode {
    enum Kind { NEAREST, NEAREST_EXACT, LINEAR, CUBIC } kind;
    bool align_corners;
};

/* The weights of the four pixels around a place that lies `t` after the second of them. */
void cubic_weights(float t, float *weights) {
    constexpr float A = -0.75f; /* as in PyTorch */
    auto near = [](float d) { return ((A + 2) * d - (A + 3)) * d * d + 1; };
    auto far = [](float d) { return ((A * d - 5 * A) * d + 8 * A) * d - 4 * A; };
    weights[0] = far(t + 1), weights[1] = near(t), weights[2] = near(1 - t), weights[3] = far(2 - t);
}

/* scale: input pixels for an output pixel, of those that do not align corners. */
FGGP_ONCE
Resampling resampling(const Mode &mode, int64_t in, int64_t out, float scale) {
    Resampling made;
    made.in = in, made.out = out;
    const bool same = in == out && (scale == 1 || mode.align_corners);
    made.taps = same || mode.kind <= Mode::NEAREST_EXACT ? 1 : mode.kind == Mode::LINEAR ? 2 : 4;
    if (mode.align_corners) scale = out > 1 ? (float)(in - 1) / (float)(out - 1) : 0;
    made.index.resize(out * made.taps);
    made.weight.assign(out * made.taps, 1);
    const float last = (float)(in - 1);
    for (int64_t i = 0; i < out; i++) {
        /* Where the pixel lies in the input: in single precision, because PyTorch's choice of pixels depends on how
         * that rounds; the product and the difference are rounded once. */
        float place;
        if (mode.kind == Mode::NEAREST || mode.align_corners) place = scale * (float)i;
        else place = (float)((double)scale * ((double)i + 0.5) - 0.5);
        if (mode.kind != Mode::CUBIC) place = std::max(place, 0.0f);
        if (mode.kind == Mode::NEAREST_EXACT) place += 0.5f;
        place = std::max(-2.0f, std::min(place, last + 2));
        const int64_t first = std::min((int64_t)std::floor(place), in - 1);
        const float rest = std::max(0.0f, std::min(place - (float)first, 1.0f));
        float weights[4] = {1};
        if (made.taps == 2) weights[0] = 1 - rest, weights[1] = rest;
        if (made.taps == 4) cubic_weights(rest, weights);
        for (int k = 0; k < made.taps; k++) {
            const int64_t pixel = same ? i : made.taps == 4 ? first - 1 + k : first + k;
            made.index[i * made.taps + k] = (int32_t)std::max<int64_t>(0, std::min(pixel, in - 1));
            made.weight[i * made.taps + k] = weights[k];
        }
    }
    return made;
}

/* Each input row is resized along itself once for the output rows around it, which are then sums of whole rows. */
class Resize {
  public:
    Resize(const Resamplings &axes, const float *in, float *out) : axes(axes), in(in), out(out) {
        const Resampling &columns = axes[2];
        copies = columns.in == columns.out && columns.taps == 1;
        for (int64_t i = 0; copies && i < columns.out; i++) copies = columns.index[i] == i;
        width = (columns.out + LANES - 1) / LANES * LANES;
    }
    int taps() const { return axes[0].taps * axes[1].taps; }
    int64_t scratch() const { return taps() == 1 ? 0 : width * taps(); }

    /* Compute these rows of the output. */
    void operator()(const Range &range, const Call &, float *scratch) const {
        Rows rows = {scratch, {}};
        std::fill(rows.held, rows.held + MOST_TAPS, -1);
        for (int64_t row = range.begin; row < range.end; row++) {
            const int64_t y = row % axes[1].out, z = row / axes[1].out % axes[0].out;
            const int64_t image = row / axes[1].out / axes[0].out * axes[0].in;
            float *to = out + row * axes[2].out;
            int64_t needed[MOST_TAPS];
            float weights[MOST_TAPS];
            for (int i = 0, k = 0; i < axes[0].taps; i++)
                for (int j = 0; j < axes[1].taps; j++, k++) {
                    const int64_t plane = image + axes[0].index[z * axes[0].taps + i];
                    needed[k] = plane * axes[1].in + axes[1].index[y * axes[1].taps + j];
                    weights[k] = axes[0].weight[z * axes[0].taps + i] * axes[1].weight[y * axes[1].taps + j];
                }
            if (taps() == 1) {
                if (row > range.begin && needed[0] == rows.held[0])
                    std::copy(to - axes[2].out, to, to);
                else
                    along(in + needed[0] * axes[2].in, to);
                rows.held[0] = needed[0];
                continue;
            }
            const float *lines[MOST_TAPS];
            find(needed, rows, lines);
            if (taps() == 2) sum<2>(lines, weights, to);
            else if (taps() == 4) sum<4>(lines, weights, to);
            else sum(lines, weights, to, taps());
        }
    }

  private:
    struct Rows {
        float *lines;            /* input rows, resized along themselves */
        int64_t held[MOST_TAPS]; /* which these are; -1: none */
    };
    /* Resize the rows that are needed and not held yet, in place of those that are not needed any more. */
    void find(const int64_t *needed, Rows &rows, const float **lines) const {
        const int count = taps();
        const int64_t *end = needed + count;
        for (int k = 0; k < count; k++) {
            int place = (int)(std::find(rows.held, rows.held + count, needed[k]) - rows.held);
            if (place == count) {
                place = 0;
                while (std::find(needed, end, rows.held[place]) != end) place++;
                along(in + needed[k] * axes[2].in, rows.lines + place * width);
                rows.held[place] = needed[k];
            }
            lines[k] = rows.lines + place * width;
        }
    }
    void along(const float *from, float *to) const {
        const Resampling &columns = axes[2];
        if (copies) std::copy(from, from + columns.in, to);
        else if (columns.taps == 1) along<1>(from, to);
        else if (columns.taps == 2) along<2>(from, to);
        else along<4>(from, to);
    }
    template <int TAPS> void along(const float *from, float *to) const {
        const int32_t *index = axes[2].index.data();
        const float *weight = axes[2].weight.data();
        for (int64_t x = 0; x < axes[2].out; x++, index += TAPS, weight += TAPS) {
            float all = TAPS == 1 ? from[index[0]] : from[index[0]] * weight[0];
#pragma GCC unroll 4
            for (int k = 1; k < TAPS; k++) all += from[index[k]] * weight[k];
            to[x] = all;
        }
    }
    template <int TAPS> void sum(const float *const *lines, const float *weights, float *to) const {
        sum(lines, weights, to, TAPS);
    }
    __attribute__((always_inline)) void sum(const float *const *lines, const float *weights, float *to,
                                            int taps) const {
        for (int64_t x = 0; x < axes[2].out; x += LANES) {
            vec all = load(lines[0] + x) * weights[0];
#pragma GCC unroll 4
            for (int k = 1; k < taps; k++) all += load(lines[k] + x) * weights[k];
            store_first(to + x, all, axes[2].out - x);
        }
    }

    Resamplings axes;
    const float *in;
    float *out;
    bool copies;   /* whether rows keep their pixels */
    int64_t width; /* floats of a line */
};

FGGP_ONCE
Mode mode_of(const Node &node) {
    static const char *const NAMES[] = {"nearest", "nearest_exact", "linear", "cubic"};
    const std::string &name = node.text("mode");
    const bool align_corners = node.flag("align_corners", false);
    for (int kind = 0; kind < 4; kind++) {
        if (name != NAMES[kind]) continue;
        if (align_corners && kind <= Mode::NEAREST_EXACT) node.refuse("the mode " + name + " cannot align corners");
        return {(Mode::Kind)kind, align_corners};
    }
    node.refuse("\"mode\" is \"" + name.substr(0, 40) + "\", and must be nearest, nearest_exact, linear or cubic");
}

/* The factors that "scales" gives; 0: none. */
FGGP_ONCE
std::vector<double> factors_of(const Node &node, int spatial) {
    std::vector<double> factors(spatial, 0);
    const json::Value *given = node.attributes.find("scales");
    if (!given || given->kind == json::Value::NONE) return factors;
    if (given->kind != json::Value::LIST || (int)given->list.size() != spatial)
        node.refuse("\"scales\" is no list of " + std::to_string(spatial) + " numbers");
    for (int d = 0; d < spatial; d++) {
        const json::Value &factor = given->list[d];
        if (factor.kind == json::Value::NONE) continue;
        if ((factor.kind != json::Value::INTEGER && factor.kind != json::Value::NUMBER) || !(factor.number > 0))
            node.refuse("\"scales\" has something that is no number above 0");
        factors[d] = factor.number;
    }
    return factors;
}

FGGP_ONCE std::vector<TensorType> infer_resize(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    const TensorType &in = *inputs[0];
    check_type(node, in, Type::F32, "its input");
    const int spatial = in.rank() - 2;
    if (spatial < 1 || spatial > AXES) node.refuse(text_of(in) + " does not have 3 to 5 dimensions");
    mode_of(node);
    factors_of(node, spatial);
    auto size = node.sizes("size", sizes);
    if ((int)size.size() != spatial)
        node.refuse("\"size\" has " + std::to_string(size.size()) + " numbers, and " + text_of(in) + " needs " +
                    std::to_string(spatial));
    TensorType out = in;
    for (int d = 0; d < spatial; d++) {
        if (in.shape[2 + d] < 1 || in.shape[2 + d] > INT32_MAX)
            node.refuse(text_of(in) + " has a dimension of a wrong size");
        out.shape[2 + d] = size[d];
    }
    out.count();
    return {out};
}

FGGP_ONCE void make_resize(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                           const Sizes &, Operations &operations) {
    const Shape &in = inputs[0]->type.shape, &out = outputs[0].type.shape;
    if (!outputs[0].type.count()) return;
    const int spatial = (int)in.size() - 2;
    const auto factors = factors_of(node, spatial);
    Resamplings axes;
    double work = 1; /* of an output row */
    for (int d = 0; d < spatial; d++) {
        const int64_t from = in[2 + d], to = out[2 + d];
        const float scale = factors[d] > 0 ? (float)(1 / factors[d]) : (float)from / (float)to;
        axes[AXES - spatial + d] = resampling(mode_of(node), from, to, scale);
        work *= axes[AXES - spatial + d].taps;
    }
    const Resize resize(axes, inputs[0]->floats(), (float *)outputs[0].data);
    const int64_t width = out.back();
    operations.push_back(loop(outputs[0].type.count() / width, (int64_t)work * width, resize.scratch(), resize));
}

} // namespace

const std::vector<Operator> RESIZE_OPERATORS = {{"resize", infer_resize, make_resize}};
} // namespace fggp
