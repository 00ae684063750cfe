/* LSTM and GRU. The products of the inputs of all steps are one product; then the steps follow one another. */
#include <memory>

#include "operators/gemm_operation.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "runtime/activations.h"

namespace fggp {
namespace {

/* The sizes of a network of layers, and where its inputs are. */
struct Recurrent {
    bool lstm, batch_first, batched;
    int64_t gates, layers, directions;
    int64_t steps, batch, input, hidden;
    size_t first; /* the first weight's place among the inputs */

    size_t weights(int64_t layer, int64_t direction) const {
        return first + 4 * (size_t)(layer * directions + direction);
    }
    int64_t width(int64_t layer) const { return layer ? directions * hidden : input; } /* of a layer's input */

    Recurrent(const Node &node, const InputTypes &inputs) {
        lstm = node.op == "lstm";
        gates = lstm ? 4 : 3;
        first = lstm ? 3 : 2;
        layers = node.integer("layers");
        directions = node.flag("bidirectional", false) ? 2 : 1;
        batch_first = node.flag("batch_first", false);
        if (layers < 1 || layers > (int64_t)inputs.size())
            node.refuse("\"layers\" is " + std::to_string(layers) + "; it must be 1 or more, and each has weights");
        check_inputs(node, inputs, 1, weights(layers, 0));
        check_type(node, *inputs[0], Type::F32, "its input");
        Shape shape = inputs[0]->shape;
        batched = shape.size() == 3;
        if (shape.size() == 2) shape.insert(shape.begin() + (batch_first ? 0 : 1), 1);
        if (shape.size() != 3) node.refuse("its input is " + text_of(*inputs[0]) + ", and must have 2 or 3 dimensions");
        steps = shape[batch_first ? 1 : 0];
        batch = shape[batch_first ? 0 : 1];
        input = shape[2];
        const TensorType *weight = optional(inputs, first + 1); /* of the states: [gates · hidden, hidden] */
        if (!weight || weight->rank() != 2) node.refuse("its first layer has no weight of the states");
        hidden = weight->shape[1];
        if (input == 0 || hidden == 0) node.refuse("its input or its states have no numbers");
        for (int64_t layer = 0; layer < layers; layer++)
            for (int64_t direction = 0; direction < directions; direction++) {
                size_t at = weights(layer, direction);
                if (!optional(inputs, at) || !optional(inputs, at + 1))
                    node.refuse("the weights of its layer " + std::to_string(layer) + " are missing");
                check_floats(node, inputs[at], {gates * hidden, width(layer)}, "its weight of an input");
                check_floats(node, inputs[at + 1], {gates * hidden, hidden}, "its weight of the states");
                check_floats(node, optional(inputs, at + 2), {gates * hidden}, "its bias of an input");
                check_floats(node, optional(inputs, at + 3), {gates * hidden}, "its bias of the states");
            }
        check_floats(node, optional(inputs, 1), state(), "its first state");
        if (lstm) check_floats(node, optional(inputs, 2), state(), "its first cell state");
    }

    Shape state() const {
        return batched ? Shape{layers * directions, batch, hidden} : Shape{layers * directions, hidden};
    }
    Shape output() const {
        if (!batched) return {steps, directions * hidden};
        return batch_first ? Shape{batch, steps, directions * hidden} : Shape{steps, batch, directions * hidden};
    }
};

FGGP_ONCE std::vector<TensorType> infer_recurrent(const Node &node, const InputTypes &inputs, const Sizes &) {
    Recurrent r(node, inputs);
    std::vector<TensorType> out = {{Type::F32, r.output()}, {Type::F32, r.state()}};
    if (r.lstm) out.push_back(out[1]);
    return out;
}

/* A tensor of a row for each step and sample. */
struct Rows {
    float *data;
    int64_t step, sample; /* floats from one to the next */
    float *at(int64_t t, int64_t n) const { return data + t * step + n * sample; }
};

const float *floats_of(const InputArrays &inputs, size_t i) {
    const Array *array = optional(inputs, i);
    return array ? array->floats() : nullptr;
}

/* All steps of the directions of a layer, for some of the samples at a time. */
class Steps final : public Operation {
  public:
    struct Direction {
        Rows gates; /* the products of the inputs */
        Rows out;
        Gemm product; /* of the states */
        Packed packed;
        const float *first, *first_cell; /* NULL: zeros */
        float *last, *last_cell;
    };
    std::vector<Direction> directions;
    std::shared_ptr<std::vector<float>> kept[3]; /* memory of the gates, and of the layers' inputs and outputs */

    explicit Steps(const Recurrent &r) : r(r) {}

    int tasks(int threads) const override {
        constexpr int64_t LEAST = 8; /* samples that share a weight while it is in a register */
        int64_t parts = std::max<int64_t>(1, std::min<int64_t>(r.batch / LEAST, threads / (int)directions.size()));
        return (int)(parts * (int64_t)directions.size());
    }
    int64_t scratch() const override {
        return r.batch * r.hidden * (r.gates + 2) + 64 + gemm_scratch(r.batch, r.gates * r.hidden, r.hidden);
    }
    void run(int task, int tasks, const Call &, float *scratch) const override {
        int parts = tasks / (int)directions.size();
        const Direction &d = directions[task / parts];
        Range samples(r.batch, task % parts, parts);
        int64_t count = samples.end - samples.begin, size = count * r.hidden, width = r.gates * r.hidden;
        if (count == 0) return;
        float *state = scratch, *cell = state + size, *gates = cell + size;
        float *rest = scratch + (r.batch * r.hidden * (r.gates + 2) + 15) / 16 * 16; /* for the product */
        start(state, d.first, samples);
        if (r.lstm) start(cell, d.first_cell, samples);
        Gemm g = d.product;
        g.rows = count;
        g.a = {state, r.hidden, 1};
        g.out = gates;
        g.out_row = width;
        bool backwards = &d != &directions[0];
        for (int64_t i = 0; i < r.steps; i++) {
            int64_t t = backwards ? r.steps - 1 - i : i;
            const float *products = d.gates.at(t, samples.begin);
            if (r.lstm) {
                g.residual = products;
                g.residual_row = d.gates.sample;
            }
            multiply(g, rest);
            for (int64_t n = 0; n < count; n++) {
                float *h = state + n * r.hidden, *own = gates + n * width;
                if (r.lstm) step_lstm(h, cell + n * r.hidden, own);
                else step_gru(h, own, products + n * d.gates.sample);
                std::copy(h, h + r.hidden, d.out.at(t, samples.begin + n));
            }
        }
        std::copy(state, state + size, d.last + samples.begin * r.hidden);
        if (r.lstm) std::copy(cell, cell + size, d.last_cell + samples.begin * r.hidden);
    }

  private:
    const Recurrent r;
    const Activation sigmoid{{FGGP_SIGMOID, 0, 0, 0}}, tanh{{FGGP_TANH, 0, 0, 0}};

    void start(float *state, const float *first, Range samples) const {
        int64_t size = (samples.end - samples.begin) * r.hidden;
        if (first) std::copy(first + samples.begin * r.hidden, first + samples.begin * r.hidden + size, state);
        else std::fill(state, state + size, 0.0f);
    }
    /* The gates are input, forget, cell and output. */
    void step_lstm(float *__restrict h, float *__restrict c, float *__restrict gates) const {
        int64_t size = r.hidden;
        float *i = gates, *f = i + size, *g = f + size, *o = g + size;
        sigmoid.apply(i, 2 * size, nullptr);
        tanh.apply(g, size, nullptr);
        sigmoid.apply(o, size, nullptr);
        for (int64_t k = 0; k < size; k++) h[k] = c[k] = f[k] * c[k] + i[k] * g[k];
        tanh.apply(h, size, nullptr);
        for (int64_t k = 0; k < size; k++) h[k] *= o[k];
    }
    /* The gates are reset, update and new. x: the products of the input. */
    void step_gru(float *__restrict h, float *__restrict gates, const float *__restrict x) const {
        int64_t size = r.hidden;
        float *reset = gates, *update = reset + size, *fresh = update + size;
        for (int64_t k = 0; k < 2 * size; k++) gates[k] += x[k];
        sigmoid.apply(gates, 2 * size, nullptr);
        for (int64_t k = 0; k < size; k++) fresh[k] = x[2 * size + k] + reset[k] * fresh[k];
        tanh.apply(fresh, size, nullptr);
        for (int64_t k = 0; k < size; k++) h[k] = (1 - update[k]) * fresh[k] + update[k] * h[k];
    }
};

FGGP_ONCE void make_recurrent(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                              const Sizes &, Operations &operations) {
    InputTypes types;
    for (auto *array : inputs) types.push_back(array ? &array->type : nullptr);
    Recurrent r(node, types);
    if (r.batch == 0) return;
    int64_t rows = r.steps * r.batch, width = r.gates * r.hidden, out_width = r.directions * r.hidden;
    /* Inputs and outputs may have the samples first; what lies between the layers has the steps first. */
    auto rows_of = [&](float *data, int64_t floats, bool outside) {
        bool samples_first = outside && r.batch_first;
        return Rows{data, samples_first ? floats : floats * r.batch, samples_first ? floats * r.steps : floats};
    };
    auto buffer = [](int64_t floats) { return std::make_shared<std::vector<float>>((size_t)floats); };
    std::shared_ptr<std::vector<float>> gates = buffer(rows * width * r.directions), between[2];
    for (int i = 0; i < 2 && i + 1 < r.layers; i++) between[i] = buffer(rows * out_width);

    const float *x = inputs[0]->floats();
    for (int64_t layer = 0; layer < r.layers; layer++) {
        auto steps = std::make_unique<Steps>(r);
        bool first = layer == 0, last = layer == r.layers - 1;
        Rows out = rows_of(last ? (float *)outputs[0].data : between[layer % 2]->data(), out_width, last);
        steps->kept[0] = gates;
        for (int i = 0; i < 2; i++) steps->kept[1 + i] = between[i];
        for (int64_t direction = 0; direction < r.directions; direction++) {
            size_t at = r.weights(layer, direction);
            Steps::Direction d;
            d.gates = rows_of(gates->data() + direction * rows * width, width, first);
            d.out = out;
            d.out.data += direction * r.hidden;
            int64_t state = (layer * r.directions + direction) * r.batch * r.hidden;
            auto state_of = [&](size_t i) { return floats_of(inputs, i) ? floats_of(inputs, i) + state : nullptr; };
            d.first = state_of(1);
            d.first_cell = r.lstm ? state_of(2) : nullptr;
            d.last = (float *)outputs[1].data + state;
            d.last_cell = r.lstm ? (float *)outputs[2].data + state : nullptr;

            d.product.columns = width;
            d.product.depth = r.hidden;
            d.product.b = Matrix{inputs[at + 1]->floats(), r.hidden, 1}.transposed();
            d.product.column_bias = floats_of(inputs, at + 3);
            if (inputs[at + 1]->constant) {
                d.packed = pack_b(d.product.b, r.hidden, width);
                d.product.packed_b = d.packed.data();
            }

            if (rows) {
                Gemm g;
                g.rows = rows;
                g.columns = width;
                g.depth = r.width(layer);
                g.a = {x, g.depth, 1};
                g.b = Matrix{inputs[at]->floats(), g.depth, 1}.transposed();
                g.out = d.gates.data;
                g.out_row = width;
                g.column_bias = floats_of(inputs, at + 2);
                operations.push_back(new_gemm(g, false, inputs[at]->constant, {FGGP_IDENTITY, 0, 0, 0}));
            }
            steps->directions.push_back(std::move(d));
        }
        operations.push_back(std::move(steps));
        x = out.data;
    }
}

} // namespace

const std::vector<Operator> RECURRENT_OPERATORS = {{"lstm", infer_recurrent, make_recurrent},
                                                   {"gru", infer_recurrent, make_recurrent}};
} // namespace fggp
