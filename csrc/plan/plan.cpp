#include "plan/plan.h"

#include <cstring>

#include "operators/operator.h"

namespace fggp {

Plan::Plan(const Graph &graph, const std::vector<TensorType> &inputs, int) : inputs(inputs), values(graph.values) {
    Sizes sizes = graph.sizes_of(inputs);
    auto constant_array = [](const Constant &constant) { return Array{constant.type, (void *)constant.dense(), true}; };
    auto allocate = [&](int value, const TensorType &type) {
        memory.emplace_back(type.bytes() / 4 + 32); /* a vector may be read after the end */
        values[value] = {type, memory.back().data(), false};
    };
    for (size_t i = 0; i < inputs.size(); i++) allocate((int)i, inputs[i]);
    for (auto &node : graph.nodes) {
        const Operator &op = *find_operator(node.op);
        std::vector<Array> read;
        for (auto &operand : node.inputs)
            read.push_back(operand.absent() ? Array() : operand.constant ? constant_array(*operand.constant) : values[operand.value]);
        InputTypes types;
        InputArrays arrays;
        for (size_t i = 0; i < read.size(); i++) {
            types.push_back(node.inputs[i].absent() ? nullptr : &read[i].type);
            arrays.push_back(node.inputs[i].absent() ? nullptr : &read[i]);
        }
        auto made = op.infer(node, types, sizes);
        if (made.size() != node.outputs.size()) node.refuse("it has " + std::to_string(node.outputs.size()) + " outputs, not " + std::to_string(made.size()));
        if (op.same_bytes) {
            values[node.outputs[0]] = {made[0], read[0].data, read[0].constant};
            continue;
        }
        std::vector<Array> out;
        for (size_t i = 0; i < made.size(); i++) {
            allocate(node.outputs[i], made[i]);
            out.push_back(values[node.outputs[i]]);
        }
        op.make(node, arrays, out, sizes, program.operations);
    }
    for (auto &output : graph.outputs)
        outputs.push_back(output.operand.constant ? constant_array(*output.operand.constant) : values[output.operand.value]);
}

const std::vector<Array> &Plan::run(const std::vector<Array> &given, int threads) {
    for (size_t i = 0; i < given.size(); i++)
        if (int64_t bytes = inputs[i].bytes()) memcpy(values[i].data, given[i].data, bytes);
    program.run({nullptr, 1}, threads, nullptr);
    return outputs;
}

} // namespace fggp
