#include "network/session.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "vectors.h"

namespace fggp {
namespace {

/* Each plan holds memory for its activations and its own copy of the non-zero weights. */
constexpr size_t PLANS_KEPT = 8;
constexpr int TRIALS = 3;
/* Threads that one group of images can keep busy; a group has one image per lane of a vector. */
constexpr int THREADS_PER_GROUP = 8;

/* Whether dimension 0 of all inputs is the same free size, and no other dimension is. */
bool has_free_batch(const Graph &graph) {
    std::string name;
    for (auto &input : graph.inputs) {
        auto &sizes = input.sizes.list;
        if (sizes.empty() || sizes[0].kind != json::Value::TEXT) return false;
        if (!name.empty() && sizes[0].text != name) return false;
        name = sizes[0].text;
        for (size_t d = 1; d < sizes.size(); d++)
            if (sizes[d].kind == json::Value::TEXT && sizes[d].text == name) return false;
    }
    return !name.empty();
}

std::vector<TensorType> with_batch(std::vector<TensorType> types, int64_t batch) {
    for (auto &type : types) type.shape[0] = batch;
    return types;
}

ForcedTilings forced_tilings(const Graph &graph) {
    ForcedTilings forced;
    forced.first = graph.plan_setting("tilings") == "first";
    forced.chains = graph.plan_setting("chains") != "no";
    if (auto *candidate = graph.plan.find("candidate")) forced.candidate = std::max<int64_t>(candidate->integer, 0);
    auto *tile = graph.plan.find("tile");
    if (tile && tile->list.size() == 3) {
        forced.rows = std::max<int64_t>(tile->list[0].integer, 1);
        forced.columns = tile->list[1].integer;
        forced.channels = tile->list[2].integer;
    }
    return forced;
}

} // namespace

Session::Session(std::unique_ptr<Graph> given)
    : graph(std::move(given)), choice(graph->plan_setting("products") == "kernels"     ? Products::KERNELS
                                      : graph->plan_setting("products") == "operators" ? Products::OPERATORS
                                                                                   : Products::MEASURED),
      tuner(forced_tilings(*graph)),
      separate_memory(graph->plan_setting("memory") == "separate"), may_split(has_free_batch(*graph)) {
    if (graph->plan_setting("pieces") == "no") may_split = false;
    if (graph->plan_setting("lanes") == "one") forced_lanes = 1;
    if (graph->plan_setting("lanes") == "vector") forced_lanes = LANES;
}

const std::vector<Array> &Session::run(const std::vector<Array> &inputs, int threads) {
    try {
        std::vector<TensorType> types;
        for (auto &input : inputs) types.push_back(input.type);
        graph->sizes_of(types); /* refuses wrong ones */
        int64_t batch = batch_of(types), piece = piece_of(types, batch, threads);
        if (piece < batch) {
            run_in_pieces(inputs, types, batch, piece, threads);
            return outputs;
        }
        Plan &plan = best_plan(inputs, types, batch, threads);
        plan.run(inputs, batch, threads, {});
        outputs = plan.outputs;
        if (plan.any_images)
            for (auto &output : outputs) output.type.shape[0] = batch;
        return outputs;
    } catch (const Failed &failed) {
        throw Refused(failed.what());
    }
}

/* Dimension 0 of the first input that has one. */
int64_t Session::batch_of(const std::vector<TensorType> &types) const {
    for (auto &type : types)
        if (type.rank() > 0) return type.shape[0];
    return 1;
}

/* The plan for inputs of these types, or for more images if it can run on fewer. */
Plan &Session::plan_for(const std::vector<TensorType> &types, int64_t batch, int lanes, int threads) {
    int64_t capacity = (batch + lanes - 1) / lanes * lanes;
    auto find = [&](auto fits) {
        auto found = std::find_if(plans.begin(), plans.end(), [&](auto &plan) { return plan->setting.lanes == lanes && fits(*plan); });
        if (found == plans.end()) return false;
        plans.splice(plans.begin(), plans, found);
        return true;
    };
    if (find([&](const Plan &plan) { return plan.inputs == types; })) return *plans.front();
    bool for_any = may_split && lanes > 1;
    std::vector<TensorType> whole = for_any ? with_batch(types, capacity) : types;
    if (for_any && find([&](const Plan &plan) { return plan.any_images && plan.inputs == whole; })) return *plans.front();
    auto make = [&](const std::vector<TensorType> &wanted, int64_t images) {
        PlanSetting setting{threads, images, lanes, separate_memory};
        return std::make_unique<Plan>(*graph, wanted, setting, [&](const Node &node, Kind kind, const std::vector<TensorType> &all) {
            return choice.choose(node, kind, all, setting, tuner);
        }, tuner);
    };
    std::unique_ptr<Plan> made = make(types, batch);
    if (for_any && made->any_images && capacity != batch) {
        /* With more images another kernel may be faster, and that may be one for just that many. */
        std::unique_ptr<Plan> larger = make(whole, capacity);
        if (larger->any_images) made = std::move(larger);
    }
    plans.push_front(std::move(made));
    if (plans.size() > PLANS_KEPT) plans.pop_back();
    return *plans.front();
}

/* The plan with the faster number of lanes: for small batches by trial. */
Plan &Session::best_plan(const std::vector<Array> &inputs, const std::vector<TensorType> &types, int64_t batch,
                         int threads) {
    if (forced_lanes) return plan_for(types, batch, forced_lanes, threads);
    if (batch >= LANES) return plan_for(types, batch, LANES, threads);
    if (batch <= 1) return plan_for(types, batch, 1, threads);
    std::vector<Shape> key;
    for (auto &type : types) key.push_back(type.shape);
    auto known = lanes.find(key);
    if (known == lanes.end()) {
        double best = INFINITY;
        int fastest = 1;
        for (int one : {1, LANES}) {
            Plan &plan = plan_for(types, batch, one, threads);
            if (!plan.has_lanes) {
                fastest = one;
                break;
            }
            for (int trial = 0; trial < TRIALS; trial++) {
                auto start = std::chrono::steady_clock::now();
                plan.run(inputs, batch, threads, {});
                std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
                if (taken.count() < best) best = taken.count(), fastest = one;
            }
        }
        if (lanes.size() > 1000) lanes.clear();
        known = lanes.emplace(key, fastest).first;
    }
    return plan_for(types, batch, known->second, threads);
}

/* The number of images that run through the network at once. If images are independent, that is the least number that
 * keeps all threads busy, so that the activations between two layers stay in the caches. */
int64_t Session::piece_of(const std::vector<TensorType> &types, int64_t batch, int threads) {
    int64_t piece = LANES * (int64_t)((threads + THREADS_PER_GROUP - 1) / THREADS_PER_GROUP);
    if (!may_split || batch <= piece) return batch;
    try {
        Plan &plan = plan_for(with_batch(types, piece), piece, LANES, threads);
        if (plan.images_independent) return piece;
        plans.pop_front();
    } catch (const Refused &) { /* other sizes do not fit: then images are not independent */
    }
    may_split = false;
    return batch;
}

void Session::run_in_pieces(const std::vector<Array> &inputs, const std::vector<TensorType> &types, int64_t batch,
                            int64_t piece, int threads) {
    outputs.clear();
    for (int64_t start = 0; start < batch; start += piece) {
        int64_t images = std::min(piece, batch - start);
        auto part_types = with_batch(types, images);
        std::vector<Array> part = inputs;
        for (size_t i = 0; i < part.size(); i++) {
            part[i].type = part_types[i];
            part[i].data = (char *)inputs[i].data + start * (inputs[i].type.bytes() / batch);
        }
        Plan &plan = images == piece ? plan_for(part_types, images, LANES, threads) : best_plan(part, part_types, images, threads);
        if (outputs.empty()) {
            outputs = plan.outputs;
            memory.resize(outputs.size());
            for (size_t i = 0; i < outputs.size(); i++) {
                outputs[i].type.shape[0] = batch;
                memory[i].resize(outputs[i].type.bytes() + 1);
                outputs[i].data = memory[i].data();
            }
        }
        std::vector<void *> addresses;
        for (auto &output : outputs) addresses.push_back((char *)output.data + start * (output.type.bytes() / batch));
        plan.run(part, images, threads, addresses);
    }
}

std::string Session::profile(const std::vector<Array> &inputs, int threads) {
    run(inputs, threads);
    std::vector<TensorType> types;
    for (auto &input : inputs) types.push_back(input.type);
    int64_t batch = batch_of(types), piece = piece_of(types, batch, threads);
    if (piece < batch) types = with_batch(types, batch = piece);
    Plan &plan = best_plan(inputs, types, batch, threads);
    size_t operations = 0;
    for (auto &step : plan.steps) operations += step.operations;
    std::vector<double> least(operations, INFINITY);
    for (int trial = 0; trial < TRIALS; trial++) {
        std::vector<double> seconds(operations);
        plan.run(inputs, batch, threads, {}, seconds.data());
        for (size_t i = 0; i < operations; i++) least[i] = std::min(least[i], seconds[i]);
    }
    std::string text = "{\"images\":" + std::to_string(batch) + ",\"memory\":" + std::to_string(plan.memory_bytes()) +
                       ",\"trials\":" + std::to_string(tuner.trials()) + ",\"steps\":[";
    size_t i = 0;
    for (auto &step : plan.steps) {
        text += &step == &plan.steps[0] ? "" : ",";
        double sum = 0;
        for (size_t k = 0; k < step.operations; k++) sum += least[i++];
        std::string names, operators;
        for (auto *node : step.nodes) {
            names += (names.empty() ? "" : ",") + json::quoted(node->name);
            operators += (operators.empty() ? "" : ",") + json::quoted(node->op);
        }
        char milliseconds[40];
        snprintf(milliseconds, sizeof milliseconds, "%.6f", sum * 1e3);
        const char *runner = step.runner == Runner::KERNELS ? "kernels" : step.runner == Runner::OPERATOR ? "operator" : "conversion";
        text += "{\"names\":[" + names + "],\"operators\":[" + operators + "],\"runs\":\"" + runner + "\",\"milliseconds\":" + milliseconds + "}";
    }
    return text + "]}";
}

} // namespace fggp
