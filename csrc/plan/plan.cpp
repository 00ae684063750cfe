#include "plan/plan.h"

#include <algorithm>
#include <cstring>

namespace fggp {

Plan::Plan(const Graph &graph, const std::vector<TensorType> &inputs, const PlanSetting &setting,
           const ChooseProduct &choose, Tuner &tuner)
    : inputs(inputs), setting(setting) {
    Lowering lowered(graph, inputs, setting.batch, setting.lanes, choose);
    kernels_only = lowered.kernels_only;
    has_lanes = lowered.has_lanes;
    bool independent = lowered.kernels_only;
    fuse_products(lowered.steps, lowered.storages, tuner);

    std::vector<int> returned;
    for (auto &place : lowered.outputs)
        if (place.where == Place::STORAGE) returned.push_back(place.index);
    memory = std::make_unique<Memory>(lowered.steps, lowered.storages, returned, setting.separate_memory);
    slots.resize(inputs.size());
    for (size_t i = 0; i < lowered.storages.size(); i++) slots.push_back(memory->address((int)i));

    int64_t nonzeros = 0;
    for (auto &step : lowered.steps)
        for (auto &product : step.chain) nonzeros += product.weight.nonzeros();
    entries = std::make_unique<Entries>(nonzeros);
    weights.reserve(lowered.steps.size()); /* so that they stay where they are */
    for (auto &step : lowered.steps) {
        size_t before = program.operations.size();
        std::vector<const Node *> nodes;
        if (step.chain.empty()) {
            step.add(*memory, program.operations);
            if (step.node) nodes.push_back(step.node);
            kept.push_back(std::move(step.add));
        } else {
            weights.emplace_back();
            auto best = tuner.choose(step.chain, lowered.storages, setting.threads);
            add_chain(step.chain, best.tiling, *memory, weights.back(), program.operations, entries.get());
            for (auto &product : step.chain) nodes.push_back(product.node);
        }
        steps.push_back({step.runner, nodes, program.operations.size() - before});
    }
    for (size_t i = 0; i < graph.outputs.size(); i++) {
        const Place &place = lowered.outputs[i];
        const Operand &operand = graph.outputs[i].operand;
        if (operand.constant || place.where == Place::CONSTANT) {
            TensorType type = operand.constant ? operand.constant->type : lowered.types[operand.value];
            outputs.push_back({type, (void *)place.constant->dense(), true});
            output_slots.push_back(-1);
        } else {
            outputs.push_back({lowered.types[operand.value], memory->address(place.index), false});
            output_slots.push_back(lowered.slot_of(place));
        }
        stored.push_back(kernels_only && operand.value >= (int)inputs.size());
        auto &made = outputs.back();
        independent = independent && !made.constant && made.type.rank() > 0 && made.type.shape[0] == setting.batch;
    }
    images_independent = independent;
    any_images = independent && !lowered.has_tokens && !lowered.copies_inputs() && setting.lanes > 1;
}

/* Join consecutive products to chains where that is faster. */
void Plan::fuse_products(std::vector<Step> &steps, const std::vector<Storage> &storages, Tuner &tuner) {
    std::vector<Step> fused;
    for (auto &step : steps) {
        if (!fused.empty() && can_append(fused.back(), step, storages)) {
            Step &previous = fused.back();
            std::vector<Convolve> joined = previous.chain;
            joined.push_back(step.chain[0]);
            auto seconds = [&](const std::vector<Convolve> &chain) {
                return tuner.choose(chain, storages, setting.threads).seconds;
            };
            double separate = seconds(previous.chain) + seconds(step.chain);
            if (seconds(joined) < separate) {
                previous.chain = std::move(joined);
                previous.reads.insert(previous.reads.end(), step.reads.begin(), step.reads.end());
                previous.writes.insert(previous.writes.end(), step.writes.begin(), step.writes.end());
                continue;
            }
        }
        fused.push_back(std::move(step));
    }
    steps = std::move(fused);
}

void Plan::run(const std::vector<Array> &given, int64_t images, int threads, const std::vector<void *> &addresses,
               double *seconds) {
    for (size_t i = 0; i < given.size(); i++) slots[i] = given[i].data;
    std::vector<bool> copied(outputs.size());
    for (size_t i = 0; i < addresses.size(); i++) {
        int slot = output_slots[i];
        copied[i] = !stored[i] || slot < 0 || slots[slot] != outputs[i].data; /* or it is an earlier output too */
        if (!copied[i]) slots[slot] = addresses[i];
    }
    program.run({slots.data(), any_images ? (int32_t)images : INT32_MAX}, threads, seconds);
    if (setting.separate_memory) memory->check_guards();
    for (size_t i = 0; i < addresses.size(); i++) {
        int slot = output_slots[i];
        int64_t bytes = outputs[i].type.bytes() / setting.batch * images;
        if (copied[i] && bytes) memcpy(addresses[i], slot < 0 ? outputs[i].data : slots[slot], bytes);
    }
    for (size_t i = 0; i < addresses.size(); i++)
        if (!copied[i]) slots[output_slots[i]] = outputs[i].data;
}

} // namespace fggp
