#include "plan/choice.h"

#include <algorithm>
#include <cmath>

#include "operators/operator.h"
#include "plan/nodes.h"

namespace fggp {
namespace {

/* On images, products up to the density CLEARLY_SPARSE run on the kernels without a measurement, and products above
 * CLEARLY_DENSE on the operators. All others are measured when a plan is made: those between the two densities, those on
 * tokens up to CLEARLY_DENSE, and those above it with at most SMALL_LAYER_WEIGHTS non-zero weights. This last group is
 * mostly the first convolution of a network. If an operator ran it, its output would have to be converted for the next
 * layers, so even a dense one may gain. */
constexpr double CLEARLY_SPARSE = 0.25, CLEARLY_DENSE = 0.7;
constexpr int64_t SMALL_LAYER_WEIGHTS = 1 << 14;
constexpr int TRIALS = 3;

} // namespace

const SparseWeight *ProductChoice::choose(const Node &node, Kind kind, const std::vector<TensorType> &types,
                                          const PlanSetting &setting, Tuner &tuner) {
    bool has_operator = find_operator(node.op)->make != nullptr;
    const bool quantized = is_quantized_product(node);
    if (products == Products::OPERATORS && has_operator) return nullptr;
    auto found = weights.find(&node);
    if (found == weights.end()) {
        const Constant &weight = *node.inputs[1].constant;
        int64_t nonzeros = weight.nonzeros();
        bool clearly_dense = !quantized && (double)nonzeros > CLEARLY_DENSE * weight.type.count() && nonzeros > SMALL_LAYER_WEIGHTS;
        std::unique_ptr<SparseWeight> made;
        if (!clearly_dense || !has_operator || products == Products::KERNELS)
            made = std::make_unique<SparseWeight>(weight, node.inputs.size() > 2 ? node.inputs[2].constant : nullptr,
                                                  is_conv(node) ? node.integer("groups") : 1);
        found = weights.emplace(&node, std::move(made)).first;
    }
    const SparseWeight *weight = found->second.get();
    /* The operators of quantised products are plain loops. */
    if (!weight || !has_operator || quantized || products == Products::KERNELS) return weight;
    return is_faster(node, *weight, kind, types, setting, tuner) ? weight : nullptr;
}

bool ProductChoice::is_faster(const Node &node, const SparseWeight &weight, Kind kind,
                              const std::vector<TensorType> &types, const PlanSetting &setting, Tuner &tuner) {
    bool images = kind != Kind::TOKENS;
    double density = weight.density();
    if (kind == Kind::IMAGES && density <= CLEARLY_SPARSE) return true;
    std::string key = node.op + text_of(node.inputs[1].constant->type.shape);
    for (auto &operand : node.inputs)
        if (operand.value >= 0) key += text_of(types[operand.value].shape);
    for (const char *attribute : {"stride", "padding", "dilation"})
        if (node.has(attribute)) key += text_of(node.integers(attribute));
    double digit = std::pow(10, std::floor(std::log10(std::max(density, 1e-9))));
    for (int64_t number : {(int64_t)kind, (int64_t)setting.lanes, (int64_t)setting.threads, setting.batch,
                           weight.inputs, (int64_t)std::round(density / digit), (int64_t)std::round(std::log10(digit))})
        key += "," + std::to_string(number);
    auto known = measured.find(key);
    if (known == measured.end()) known = measured.emplace(key, measure(node, weight, images, types, setting, tuner)).first;
    return known->second;
}

/* Time this product alone. Returns whether the kernels are faster than the operator. */
bool ProductChoice::measure(const Node &node, const SparseWeight &weight, bool images,
                            const std::vector<TensorType> &types, const PlanSetting &setting, Tuner &tuner) {
    Graph graph;
    graph.nodes.push_back(node);
    Node &alone = graph.nodes[0];
    std::vector<TensorType> inputs;
    std::vector<std::vector<float>> numbers;
    std::vector<Array> arrays;
    for (auto &operand : alone.inputs) {
        if (operand.constant && operand.constant->sparse) {
            /* A copy, so that the dense one, which the operator asks it for, is not kept. */
            graph.constants.push_back(std::make_unique<Constant>(*operand.constant));
            operand.constant = graph.constants.back().get();
        }
        if (operand.value < 0) continue;
        const TensorType &type = types[operand.value];
        operand.value = graph.values++;
        inputs.push_back(type);
        numbers.emplace_back(type.count(), 1.0f);
        Input input;
        input.sizes.kind = json::Value::LIST;
        for (int64_t size : type.shape) {
            json::Value number;
            number.kind = json::Value::INTEGER;
            number.integer = size;
            input.sizes.list.push_back(number);
        }
        graph.inputs.push_back(input);
    }
    for (size_t i = 0; i < inputs.size(); i++) arrays.push_back({inputs[i], numbers[i].data(), false});
    alone.outputs[0] = graph.values++;
    graph.outputs.push_back({"", {alone.outputs[0], nullptr}});

    double seconds[2][3]; /* on the operator or the kernels: by runner */
    for (bool on_kernels : {false, true}) {
        Plan plan(graph, inputs, setting,
                  [&](const Node &, Kind, const std::vector<TensorType> &) { return on_kernels ? &weight : nullptr; },
                  tuner);
        size_t operations = 0;
        for (auto &step : plan.steps) operations += step.operations;
        std::fill_n(seconds[on_kernels], 3, INFINITY);
        for (int trial = 0; trial < TRIALS; trial++) {
            std::vector<double> each(operations);
            plan.run(arrays, setting.batch, setting.threads, {}, each.data());
            double sums[3] = {};
            size_t i = 0;
            for (auto &step : plan.steps)
                for (size_t k = 0; k < step.operations; k++) sums[(int)step.runner] += each[i++];
            for (int runner = 0; runner < 3; runner++) seconds[on_kernels][runner] = std::min(seconds[on_kernels][runner], sums[runner]);
        }
    }
    double dense = seconds[0][(int)Runner::OPERATOR], product = seconds[1][(int)Runner::KERNELS];
    double conversions = seconds[1][(int)Runner::CONVERSION];
    /* Images: the neighbours mostly run on the kernels, so running this product on the operator costs the conversions.
     * Tokens: the neighbours mostly run on operators, so running this product on the kernels costs the conversions. */
    return images ? product < dense + conversions : product + conversions < dense;
}

} // namespace fggp
