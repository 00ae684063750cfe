/* Norms and softmax. Sums are those of doubles, so that results are rounded like those of exact arithmetic. */
#include <cmath>

#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "runtime/functions.h"

namespace fggp {
namespace {

/* ---- layer_norm, rms_norm, group_norm ---- */

/* Mean and 1 / √(variance + ε) of a row in one pass: sums of the differences to the row's first number, whose distance
 * from the mean is that of a typical number, lose nothing when the mean's square is subtracted. */
struct Moments {
    float high, low; /* their sum is the mean */
    float inverse;
    Moments(const float *x, int64_t count, double epsilon) {
        double origin = x[0];
        dvec sums[2] = {}, squares[2] = {};
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            for (int k = 0; k < 2; k++) {
                dvec d = load_wide(x + i + k * HALF) - origin;
                sums[k] += d;
                squares[k] += d * d;
            }
        double sum = sum_of(sums[0] + sums[1]), square = sum_of(squares[0] + squares[1]);
        for (; i < count; i++) {
            double d = x[i] - origin;
            sum += d;
            square += d * d;
        }
        double shift = sum / (double)count, mean = origin + shift;
        double variance = square / (double)count - shift * shift;
        variance = variance < 0 ? 0 : variance; /* keeps NaN */
        high = (float)mean;
        low = (float)(mean - high);
        inverse = (float)(1 / std::sqrt(variance + epsilon));
    }
};

/* The same without a mean, for rms_norm: 1 / √(mean of the squares + ε). */
float inverse_of_squares(const float *x, int64_t count, double epsilon) {
    dvec squares[2] = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < 2; k++) {
            dvec d = load_wide(x + i + k * HALF);
            squares[k] += d * d;
        }
    double square = sum_of(squares[0] + squares[1]);
    for (; i < count; i++) square += (double)x[i] * x[i];
    return (float)(1 / std::sqrt(square / (double)count + epsilon));
}

double epsilon_of(const Node &node) {
    double epsilon = node.number("epsilon");
    if (!(epsilon >= 0)) node.refuse("\"epsilon\" is " + std::to_string(epsilon) + "; it must be 0 or more");
    return epsilon;
}

/* The last `dims` dimensions, which are normalised together. */
Shape normalised(const Node &node, const Shape &shape) {
    int64_t dims = node.integer("dims");
    if (dims < 1 || dims > (int64_t)shape.size())
        node.refuse("\"dims\" is " + std::to_string(dims) + "; it must be from 1 to the number of dimensions, " +
                    std::to_string(shape.size()));
    return Shape(shape.end() - dims, shape.end());
}

FGGP_ONCE std::vector<TensorType> infer_row_norm(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, node.op == "layer_norm" ? 3 : 2);
    check_type(node, *inputs[0], Type::F32, "its input");
    Shape row = normalised(node, inputs[0]->shape);
    check_floats(node, optional(inputs, 1), row, "its weight");
    check_floats(node, optional(inputs, 2), row, "its bias");
    epsilon_of(node);
    return {*inputs[0]};
}

/* ((x - mean) · inverse) · weight + bias, where weight and bias may be absent. */
template <class Center>
void finish_row(float *out, const float *x, int64_t count, const float *weight, const float *bias,
                const Center &center) {
    if (weight && bias) in_float(out, count, [&](vec v, vec w, vec b) { return center(v) * w + b; }, x, weight, bias);
    else if (weight) in_float(out, count, [&](vec v, vec w) { return center(v) * w; }, x, weight);
    else if (bias) in_float(out, count, [&](vec v, vec b) { return center(v) + b; }, x, bias);
    else in_float(out, count, center, x);
}

FGGP_ONCE void make_row_norm(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                             Operations &operations) {
    int64_t elements = out[0].type.count();
    if (!elements) return;
    int64_t row = count_of(normalised(node, out[0].type.shape));
    const Array *weights = optional(inputs, 1), *biases = optional(inputs, 2);
    const float *x = inputs[0]->floats(), *weight = weights ? weights->floats() : nullptr,
                *bias = biases ? biases->floats() : nullptr;
    float *to = (float *)out[0].data;
    double epsilon = epsilon_of(node);
    if (node.op == "rms_norm")
        operations.push_back(loop(elements / row, row * 2, [=](Range rows, const Call &, float *) {
            for (int64_t r = rows.begin; r < rows.end; r++) {
                vec inverse = splat(inverse_of_squares(x + r * row, row, epsilon));
                finish_row(to + r * row, x + r * row, row, weight, bias, [&](vec v) { return v * inverse; });
            }
        }));
    else
        operations.push_back(loop(elements / row, row * 2, [=](Range rows, const Call &, float *) {
            for (int64_t r = rows.begin; r < rows.end; r++) {
                Moments m(x + r * row, row, epsilon);
                finish_row(to + r * row, x + r * row, row, weight, bias,
                           [&](vec v) { return ((v - m.high) - m.low) * m.inverse; });
            }
        }));
}

FGGP_ONCE std::vector<TensorType> infer_group_norm(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 3);
    check_type(node, *inputs[0], Type::F32, "its input");
    const Shape &shape = inputs[0]->shape;
    check_rank(node, *inputs[0], 2, "its input");
    int64_t groups = node.integer("groups");
    if (groups < 1 || shape[1] % groups)
        node.refuse("\"groups\" is " + std::to_string(groups) + "; it must divide the " +
                    std::to_string(shape[1]) + " channels");
    check_floats(node, optional(inputs, 1), {shape[1]}, "its weight");
    check_floats(node, optional(inputs, 2), {shape[1]}, "its bias");
    epsilon_of(node);
    return {*inputs[0]};
}

FGGP_ONCE void make_group_norm(const Node &node, const InputArrays &inputs, const std::vector<Array> &out,
                               const Sizes &, Operations &operations) {
    const Shape &shape = out[0].type.shape;
    int64_t elements = out[0].type.count();
    if (!elements) return;
    int64_t groups = node.integer("groups"), channels = shape[1] / groups, row = elements / (shape[0] * groups);
    int64_t area = row / channels;
    const Array *weights = optional(inputs, 1), *biases = optional(inputs, 2);
    const float *x = inputs[0]->floats(), *weight = weights ? weights->floats() : nullptr,
                *bias = biases ? biases->floats() : nullptr;
    float *to = (float *)out[0].data;
    double epsilon = epsilon_of(node);
    operations.push_back(loop(elements / row, row * 2, [=](Range rows, const Call &, float *) {
        for (int64_t r = rows.begin; r < rows.end; r++) {
            Moments m(x + r * row, row, epsilon);
            int64_t first = r % groups * channels;
            for (int64_t c = 0; c < channels; c++) {
                float w = weight ? weight[first + c] : 1, b = bias ? bias[first + c] : 0;
                int64_t at = r * row + c * area;
                in_float(to + at, area, [&](vec v) { return ((v - m.high) - m.low) * m.inverse * w + b; }, x + at);
            }
        }
    }));
}

/* ---- softmax ---- */

float largest_of(const float *x, int64_t count) { /* NaN does not count */
    vec all = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec v = load(x + i);
        all = v > all ? v : all;
    }
    float largest = -INFINITY;
    for (int k = 0; k < LANES; k++) largest = all[k] > largest ? all[k] : largest;
    for (; i < count; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* Adds the numbers of a vector to two vectors of doubles. */
struct Sum {
    dvec halves[2] = {};
    void add(vec v) {
        float all[LANES];
        store(all, v);
        halves[0] += load_wide(all);
        halves[1] += load_wide(all + HALF);
    }
    double total() const { return sum_of(halves[0] + halves[1]); }
};

/* Softmax of a row, or its logarithm. NaN comes from the exponential of NaN and of ∞ - ∞, and then is in the sum. */
void softmax_row(float *out, const float *x, int64_t count, bool log) {
    float largest = largest_of(x, count);
    Sum sum;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec e = exponential(load(x + i) - largest);
        store(out + i, e);
        sum.add(e);
    }
    if (i < count) {
        float rest[LANES];
        std::fill(std::copy(x + i, x + count, rest), rest + LANES, -INFINITY);
        vec e = exponential(load(rest) - largest);
        store_first(out + i, e, count - i);
        sum.add(e);
    }
    if (log) {
        float logarithm = (float)std::log(sum.total());
        return in_float(out, count, [&](vec v) { return (v - largest) - logarithm; }, x);
    }
    float inverse = (float)(1 / sum.total());
    in_float(out, count, [&](vec v) { return v * inverse; }, out);
}

constexpr int64_t COLUMNS = 128;

/* The same of up to COLUMNS neighbouring columns. `stride`: from a number to the next of its column. */
void softmax_columns(float *out, const float *x, int64_t count, int64_t stride, int64_t columns, bool log) {
    float largest[COLUMNS], last[COLUMNS], powers[COLUMNS];
    double sums[COLUMNS] = {};
    std::fill(largest, largest + columns, -INFINITY);
    for (int64_t i = 0; i < count; i++)
        in_float(largest, columns, [](vec l, vec v) { return v > l ? v : l; }, largest, x + i * stride);
    for (int64_t i = 0; i < count; i++) {
        float *to = log ? powers : out + i * stride;
        in_float(to, columns, [](vec v, vec l) { return exponential(v - l); }, x + i * stride, largest);
        for (int64_t k = 0; k < columns; k++) sums[k] += to[k];
    }
    for (int64_t k = 0; k < columns; k++) last[k] = (float)(log ? std::log(sums[k]) : 1 / sums[k]);
    for (int64_t i = 0; i < count; i++) {
        float *to = out + i * stride;
        if (log) in_float(to, columns, [](vec v, vec l, vec s) { return (v - l) - s; }, x + i * stride, largest, last);
        else in_float(to, columns, [](vec v, vec s) { return v * s; }, to, last);
    }
}

FGGP_ONCE std::vector<TensorType> infer_softmax(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    check_type(node, *inputs[0], Type::F32, "its input");
    node.dimension("dim", std::max(1, inputs[0]->rank()));
    node.flag("log", false);
    return {*inputs[0]};
}

FGGP_ONCE void make_softmax(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                            Operations &operations) {
    const Shape &shape = out[0].type.shape;
    int64_t elements = out[0].type.count();
    if (!elements) return;
    Axis axis(node, shape);
    int64_t count = axis.count, inner = axis.inner;
    bool log = node.flag("log", false);
    const float *x = inputs[0]->floats();
    float *to = (float *)out[0].data;
    constexpr int64_t COST = 4; /* an exponential, in reading and writing floats */
    if (inner == 1)
        operations.push_back(loop(elements / count, count * COST, [=](Range rows, const Call &, float *) {
            for (int64_t r = rows.begin; r < rows.end; r++) softmax_row(to + r * count, x + r * count, count, log);
        }));
    else if (inner < LANES / 2) /* columns are copied to rows */
        operations.push_back(loop(elements / count, count * COST, 2 * count, [=](Range rows, const Call &, float *copy) {
            for (int64_t r = rows.begin; r < rows.end; r++) {
                int64_t first = r / inner * count * inner + r % inner;
                for (int64_t i = 0; i < count; i++) copy[i] = x[first + i * inner];
                softmax_row(copy + count, copy, count, log);
                for (int64_t i = 0; i < count; i++) to[first + i * inner] = copy[count + i];
            }
        }));
    else {
        int64_t parts = (inner + COLUMNS - 1) / COLUMNS;
        int64_t work = count * std::min(inner, COLUMNS) * COST;
        operations.push_back(loop(elements / count / inner * parts, work, [=](Range range, const Call &, float *) {
            for (int64_t i = range.begin; i < range.end; i++) {
                int64_t column = i % parts * COLUMNS, first = i / parts * count * inner + column;
                softmax_columns(to + first, x + first, count, inner, std::min(COLUMNS, inner - column), log);
            }
        }));
    }
}

} // namespace

const std::vector<Operator> NORM_OPERATORS = {{"layer_norm", infer_row_norm, make_row_norm},
                                              {"rms_norm", infer_row_norm, make_row_norm},
                                              {"group_norm", infer_group_norm, make_group_norm},
                                              {"softmax", infer_softmax, make_softmax}};
} // namespace fggp
