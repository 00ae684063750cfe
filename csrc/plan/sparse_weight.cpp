#include "plan/sparse_weight.h"

#include <algorithm>

namespace fggp {

SparseWeight::SparseWeight(const Constant &weight, const Constant *bias, int64_t groups) : bias(bias), groups(groups) {
    auto &shape = weight.type.shape;
    outputs = shape[0];
    inputs = shape[1] * groups;
    rows = shape.size() == 4 ? shape[2] : 1;
    columns = shape.size() > 2 ? shape.back() : 1;
    positions = &weight.positions;
    values = &weight.values;
    if (weight.sparse) return;
    auto found = std::make_shared<Collected>();
    auto *all = (const float *)weight.dense();
    for (int64_t i = 0, count = weight.type.count(); i < count; i++)
        if (all[i] != 0) found->positions.push_back((uint32_t)i), found->values.push_back(all[i]);
    positions = &found->positions;
    values = &found->values;
    collected = found;
}

SparseWeight SparseWeight::unfolded() const {
    SparseWeight other = *this;
    other.inputs = inputs * rows * columns;
    other.rows = other.columns = 1;
    return other;
}

double SparseWeight::density() const {
    return (double)nonzeros() / std::max(1.0, (double)outputs * (double)(inputs / groups) * (double)(rows * columns));
}

PackedWeight SparseWeight::pack(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk) const {
    int64_t group_inputs = inputs / groups, group_outputs = outputs / groups;
    int64_t filter = group_inputs * rows * columns; /* weights of an output channel, zeros included */
    int64_t chunks = (inputs + chunk - 1) / chunk;
    /* For each weight of an output channel of the first group: the offset of its input. */
    std::vector<int32_t> offsets(filter);
    int64_t bytes = input.lanes * 4, i = 0;
    for (int64_t channel = 0; channel < group_inputs; channel++)
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < columns; x++)
                offsets[i++] = (int32_t)((channel * input.plane + (y * dilation.rows - padding.rows) * input.row +
                                          x * dilation.columns - padding.columns) * bytes);

    PackedWeight packed;
    packed.bias.assign(outputs, 0.0f);
    if (bias) std::copy_n((const float *)bias->dense(), outputs, packed.bias.begin());
    packed.starts.assign(chunks * outputs + 1, 0);
    packed.entries.resize(values->size());
    /* Calls take(part, place, i) for each weight: its chunk and output channel, its place in the channel, its number. */
    auto each = [&](auto take) {
        size_t i = 0;
        for (int64_t output = 0; output < outputs; output++) {
            int64_t first = output * filter, first_input = output / group_outputs * group_inputs;
            for (; i < positions->size() && (*positions)[i] < first + filter; i++) {
                int64_t place = (*positions)[i] - first;
                int64_t part = chunks == 1 ? 0 : (first_input + place / (rows * columns)) / chunk;
                take(part * outputs + output, place, first_input, i);
            }
        }
    };
    uint32_t *counts = packed.starts.data() + 1;
    each([&](int64_t part, int64_t, int64_t, size_t) { counts[part]++; });
    for (int64_t part = 1; part < chunks * outputs; part++) counts[part] += counts[part - 1];
    std::vector<uint32_t> next(packed.starts.begin(), packed.starts.end() - 1);
    each([&](int64_t part, int64_t place, int64_t first_input, size_t i) {
        int32_t offset = offsets[place] + (int32_t)(first_input * input.plane * bytes);
        packed.entries[next[part]++] = {offset, (*values)[i]};
    });
    return packed;
}

} // namespace fggp
