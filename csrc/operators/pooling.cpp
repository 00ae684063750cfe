/* Pools: the largest number, or the mean, of each window of a plane of 1 to 3 dimensions. */
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/quantized.h"
#include "operators/operator.h"
#include "vectors.h"

namespace fggp {
namespace {

/* The inputs that an output reads along one dimension: begin, begin + dilation, … */
struct Window {
    int64_t begin, count;
    float divisor; /* a mean is divided by the product of these of all dimensions */
};
struct Axis {
    int64_t size = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;
    std::vector<Window> windows = {{0, 1, 1}};
};
/* Planes, rows, columns. A dimension that a tensor lacks has size 1. */
constexpr int AXES = 3;
typedef std::array<Axis, AXES> Axes;

struct Maximum {
    static constexpr bool DIVIDES = false;
    static constexpr float IDENTITY = -std::numeric_limits<float>::infinity();
    /* Keeps NaN. */
    template <class Lanes> static Lanes combine(Lanes a, Lanes b) { return ((b > a) | (b != b)) ? b : a; }
};
struct Mean {
    static constexpr bool DIVIDES = true;
    static constexpr float IDENTITY = 0;
    template <class Lanes> static Lanes combine(Lanes a, Lanes b) { return a + b; }
};

/* Base of the two ways to compute rows of the output. */
struct Rows {
    Axes axes;
    const float *in, *end; /* of all elements */
    float *out;

    int64_t count(int axis) const { return (int64_t)axes[axis].windows.size(); }
    int64_t in_plane() const { return axes[0].size * axes[1].size * axes[2].size; }

    /* Calls work(in, windows down, windows across, row of the output) for each row. */
    template <class Work> void each(const Range &range, const Work &work) const {
        for (int64_t row = range.begin; row < range.end; row++) {
            int64_t y = row % count(1), z = row / count(1) % count(0), plane = row / count(1) / count(0);
            work(in + plane * in_plane(), axes[0].windows[z], axes[1].windows[y], out + row * count(2));
        }
    }
    int64_t offset(const Window &planes, const Window &rows, int64_t i, int64_t j) const {
        const int64_t plane = planes.begin + i * axes[0].dilation, row = rows.begin + j * axes[1].dilation;
        return (plane * axes[1].size + row) * axes[2].size;
    }
};

/* Window by window. */
template <class Combine> struct EachWindow : Rows {
    void operator()(const Range &range, const Call &, float *) const {
        each(range, [&](const float *from, const Window &planes, const Window &rows, float *to) {
            for (auto &columns : axes[2].windows) {
                float all = Combine::IDENTITY;
                for (int64_t i = 0; i < planes.count; i++)
                    for (int64_t j = 0; j < rows.count; j++)
                        all = Combine::combine(
                            all, run(from + offset(planes, rows, i, j) + columns.begin, columns.count));
                if (Combine::DIVIDES) all /= planes.divisor * rows.divisor * columns.divisor;
                *to++ = all;
            }
        });
    }
    float run(const float *from, int64_t count) const {
        float all = Combine::IDENTITY;
        int64_t step = axes[2].dilation, i = 0;
        if (step == 1 && count >= LANES) {
            vec parts[4]; /* so that one need not wait for the previous one */
            for (auto &part : parts) part = splat(Combine::IDENTITY);
            for (; i + 4 * LANES <= count; i += 4 * LANES)
                for (int k = 0; k < 4; k++) parts[k] = Combine::combine(parts[k], load(from + i + k * LANES));
            for (; i + LANES <= count; i += LANES) parts[0] = Combine::combine(parts[0], load(from + i));
            vec both = Combine::combine(Combine::combine(parts[0], parts[1]), Combine::combine(parts[2], parts[3]));
            for (int k = 0; k < LANES; k++) all = Combine::combine(all, (float)both[k]);
        }
        for (; i < count; i++) all = Combine::combine(all, from[i * step]);
        return all;
    }
};

constexpr int64_t CHUNK = 4096; /* the input columns that are in the scratch memory at the same time, or so */

/* First down the columns for a row of windows, which is vector code, then along the row. */
template <class Combine> struct DownThenAcross : Rows {
    std::vector<float> divisors; /* of the columns, for whole vectors */

    explicit DownThenAcross(const Rows &rows) : Rows(rows) {
        for (auto &window : axes[2].windows) divisors.push_back(window.divisor);
        divisors.resize(divisors.size() + LANES, 1);
    }
    static bool suits(const Axis &columns) {
        return columns.stride <= CHUNK / LANES && (columns.kernel - 1) * columns.dilation <= CHUNK;
    }
    int64_t chunk() const { return std::max<int64_t>(1, CHUNK / axes[2].stride / LANES) * LANES; } /* outputs */
    int64_t scratch() const {
        return (chunk() + LANES) * axes[2].stride + (axes[2].kernel - 1) * axes[2].dilation + 3 * LANES;
    }

    void operator()(const Range &range, const Call &, float *line) const {
        each(range, [&](const float *from, const Window &planes, const Window &rows, float *to) {
            for (int64_t x = 0; x < count(2); x += chunk()) {
                int64_t outputs = std::min(chunk(), count(2) - x);
                down(from, planes, rows, x * axes[2].stride - axes[2].padding,
                     (outputs - 1) * axes[2].stride + (axes[2].kernel - 1) * axes[2].dilation + 1, line);
                if (axes[2].stride == 1) across<1>(line, x, outputs, to + x);
                else if (axes[2].stride == 2) across<2>(line, x, outputs, to + x);
                else across(line, outputs, to + x);
                if (!Combine::DIVIDES) continue;
                float divisor = planes.divisor * rows.divisor;
                for (int64_t i = 0; i < outputs; i++) to[x + i] /= divisor * divisors[x + i];
            }
        });
    }

  private:
    /* The line: for `columns` input columns from `first` on, which may be padding, all in the window combined. */
    void down(const float *from, const Window &planes, const Window &rows, int64_t first, int64_t columns,
              float *line) const {
        int64_t begin = std::min(std::max<int64_t>(0, -first), columns);
        int64_t after = std::min(std::max(begin, axes[2].size - first), columns);
        std::fill(line, line + begin, Combine::IDENTITY);
        for (int64_t x = begin; x < after; x += LANES) { /* beyond the row too */
            vec all = splat(Combine::IDENTITY);
            for (int64_t i = 0; i < planes.count; i++)
                for (int64_t j = 0; j < rows.count; j++)
                    all = Combine::combine(all, load_before_end(from + offset(planes, rows, i, j) + first + x));
            store(line + x, all);
        }
        std::fill(line + after, line + columns, Combine::IDENTITY);
    }
    vec load_before_end(const float *p) const {
        if (p + LANES <= end) return load(p);
        float rest[LANES] = {};
        std::copy(p, end, rest);
        return load(rest);
    }
    template <int STRIDE> void across(const float *line, int64_t, int64_t outputs, float *to) const {
        for (int64_t x = 0; x < outputs; x += LANES) {
            vec all = splat(Combine::IDENTITY);
            for (int64_t k = 0; k < axes[2].kernel; k++) {
                const float *from = line + x * STRIDE + k * axes[2].dilation;
                all = Combine::combine(all, STRIDE == 1 ? load(from) : load_every_second(from));
            }
            store_first(to + x, all, outputs - x);
        }
    }
    void across(const float *line, int64_t outputs, float *to) const {
        for (int64_t x = 0; x < outputs; x++) {
            float all = Combine::IDENTITY;
            for (int64_t k = 0; k < axes[2].kernel; k++)
                all = Combine::combine(all, line[x * axes[2].stride + k * axes[2].dilation]);
            to[x] = all;
        }
    }
};

FGGP_ONCE
int spatial_of(const Node &node, const InputTypes &inputs) {
    check_inputs(node, inputs, 1, 1);
    if (node.op != "max_pool" || inputs[0]->type != Type::U8) check_type(node, *inputs[0], Type::F32, "its input");
    int spatial = inputs[0]->rank() - 2;
    if (spatial < 1 || spatial > AXES) node.refuse(text_of(*inputs[0]) + " does not have 3 to 5 dimensions");
    for (int d = 0; d < spatial; d++)
        if (!inputs[0]->shape[2 + d]) node.refuse(text_of(*inputs[0]) + " has planes without elements");
    return spatial;
}

/* The axes of a pool with a kernel, but for the windows. */
FGGP_ONCE
Axes kernel_axes(const Node &node, const TensorType &in) {
    bool maximum = node.op == "max_pool";
    int spatial = in.rank() - 2;
    auto kernel = numbers_by_dimension(node, "kernel", spatial, 1);
    auto stride = numbers_by_dimension(node, "stride", spatial, 1);
    auto padding = numbers_by_dimension(node, "padding", spatial, 0);
    auto dilation = maximum ? numbers_by_dimension(node, "dilation", spatial, 1) : std::vector<int64_t>(spatial, 1);
    Axes axes;
    for (int d = 0; d < spatial; d++) {
        axes[AXES - spatial + d] = {in.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d], {}};
        int64_t extent = (kernel[d] - 1) * dilation[d] + 1;
        if (padding[d] > extent / 2)
            node.refuse("\"padding\" has " + std::to_string(padding[d]) +
                        ", and must be at most half of the kernel's " + std::to_string(extent));
    }
    return axes;
}

int64_t outputs_of(const Node &node, const Axis &axis) {
    bool ceil = node.flag("ceil", false);
    int64_t room = axis.size + 2 * axis.padding - (axis.kernel - 1) * axis.dilation - 1;
    if (room < 0 && !(ceil && room + axis.stride > 0))
        node.refuse("the kernel is " + std::to_string((axis.kernel - 1) * axis.dilation + 1) +
                    " wide, and the padded input only " + std::to_string(axis.size + 2 * axis.padding));
    int64_t outputs = (room + (ceil ? axis.stride - 1 : 0)) / axis.stride + 1;
    /* No window starts in the padding after the input. */
    if (ceil && (outputs - 1) * axis.stride >= axis.size + axis.padding) outputs--;
    return outputs;
}

FGGP_ONCE std::vector<TensorType> infer_pool(const Node &node, const InputTypes &inputs, const Sizes &) {
    int spatial = spatial_of(node, inputs);
    Axes axes = kernel_axes(node, *inputs[0]);
    TensorType out = *inputs[0];
    for (int d = 0; d < spatial; d++) out.shape[2 + d] = outputs_of(node, axes[AXES - spatial + d]);
    node.flag("count_padding", true);
    if (node.has("divisor") && !node.integer("divisor")) node.refuse("\"divisor\" is 0");
    return {out};
}

/* Make the operation that computes the windows. */
template <class Combine>
FGGP_ONCE
void make_windows(Axes axes, bool window_by_window, const Array &in, const Array &out, Operations &operations) {
    /* If a window is all of the rows, these are one long row. */
    for (int d = AXES - 1; d > 0; d--) {
        Axis &last = axes[AXES - 1];
        Axis &before = axes[AXES - 2];
        bool all = last.windows.size() == 1 && last.windows[0].count == last.size && last.dilation == 1;
        if (!all || before.dilation != 1) break;
        window_by_window |= last.size > 1;
        for (auto &window : before.windows) {
            window.begin *= last.size, window.count *= last.size;
            window.divisor *= last.windows[0].divisor;
        }
        before.size *= last.size;
        last = before;
        before = axes[0];
        axes[0] = Axis();
    }
    Rows rows = {axes, in.floats(), in.floats() + in.type.count(), (float *)out.data};
    int64_t count = out.type.count() / rows.count(2);
    double numbers = (double)rows.count(2); /* that a row reads */
    for (auto &axis : axes) numbers *= (double)axis.windows[axis.windows.size() / 2].count;
    int64_t work = (int64_t)std::min(numbers, 1e9);
    if (window_by_window || !DownThenAcross<Combine>::suits(axes[AXES - 1]))
        operations.push_back(loop(count, work, EachWindow<Combine>{rows}));
    else {
        DownThenAcross<Combine> pool(rows);
        operations.push_back(loop(count, work, pool.scratch(), pool));
    }
}

FGGP_ONCE void make_pool(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs, const Sizes &,
                         Operations &operations) {
    const TensorType &in = inputs[0]->type;
    if (!outputs[0].type.count()) return;
    if (in.type == Type::U8) return make_quantized_max_pool(node, inputs, outputs[0], operations);
    bool count_padding = node.flag("count_padding", true);
    int64_t divisor = node.has("divisor") ? node.integer("divisor") : 0;
    Axes axes = kernel_axes(node, in);
    for (int d = AXES - (in.rank() - 2); d < AXES; d++) {
        Axis &axis = axes[d];
        int64_t count = outputs_of(node, axis);
        for (int64_t i = 0; i < count; i++) {
            int64_t start = i * axis.stride - axis.padding;
            int64_t skipped = start < 0 ? (-start + axis.dilation - 1) / axis.dilation : 0;
            int64_t stop = start < axis.size ? (axis.size - start + axis.dilation - 1) / axis.dilation : 0;
            int64_t inside = std::max<int64_t>(0, std::min(stop, axis.kernel) - skipped);
            int64_t with_padding = std::min(start + axis.kernel, axis.size + axis.padding) - start;
            int64_t divided_by = count_padding ? with_padding : std::max<int64_t>(1, inside);
            axis.windows.push_back({start + skipped * axis.dilation, inside, divisor ? 1.0f : (float)divided_by});
        }
    }
    if (divisor)
        for (auto &window : axes[AXES - 1].windows) window.divisor = (float)divisor;
    if (node.op == "max_pool")
        make_windows<Maximum>(axes, false, *inputs[0], outputs[0], operations);
    else
        make_windows<Mean>(axes, false, *inputs[0], outputs[0], operations);
}

FGGP_ONCE std::vector<TensorType> infer_adaptive(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    int spatial = spatial_of(node, inputs);
    auto size = node.sizes("size", sizes);
    if ((int)size.size() != spatial)
        node.refuse("\"size\" has " + std::to_string(size.size()) + " numbers, and " + text_of(*inputs[0]) + " needs " +
                    std::to_string(spatial));
    TensorType out = *inputs[0];
    std::copy(size.begin(), size.end(), out.shape.begin() + 2);
    return {out};
}

FGGP_ONCE void make_adaptive(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                             const Sizes &, Operations &operations) {
    const Shape &in = inputs[0]->type.shape, &out = outputs[0].type.shape;
    if (!outputs[0].type.count()) return;
    Axes axes;
    for (size_t d = 2; d < in.size(); d++) {
        Axis &axis = axes[AXES - in.size() + d];
        axis.size = in[d];
        axis.windows.clear();
        for (int64_t i = 0; i < out[d]; i++) {
            /* i · in / out rounded down, and (i + 1) · in / out rounded up, without products that overflow */
            int64_t whole = in[d] / out[d], rest = in[d] % out[d];
            int64_t begin = i * whole + i * rest / out[d];
            int64_t end = (i + 1) * whole + ((i + 1) * rest + out[d] - 1) / out[d];
            axis.windows.push_back({begin, end - begin, (float)(end - begin)});
        }
    }
    if (node.op == "adaptive_max_pool")
        make_windows<Maximum>(axes, true, *inputs[0], outputs[0], operations);
    else
        make_windows<Mean>(axes, true, *inputs[0], outputs[0], operations);
}

} // namespace

const std::vector<Operator> POOLING_OPERATORS = {
    {"max_pool", infer_pool, make_pool, false, true},
    {"average_pool", infer_pool, make_pool},
    {"adaptive_average_pool", infer_adaptive, make_adaptive},
    {"adaptive_max_pool", infer_adaptive, make_adaptive},
};
} // namespace fggp
