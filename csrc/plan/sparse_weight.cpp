#include "plan/sparse_weight.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace fggp {
namespace {

constexpr int64_t BLOCK = CHANNELS_PER_BLOCK;

} // namespace

SparseWeight::SparseWeight(const Constant &weight, const Constant *bias, int64_t groups) : bias(bias), groups(groups) {
    auto &shape = weight.type.shape;
    whole = weight.type.type == Type::I8;
    outputs = shape[0];
    group_inputs = shape[1];
    inputs = whole ? blocks_of(shape[1] * groups) : shape[1] * groups;
    rows = shape.size() == 4 ? shape[2] : 1;
    columns = shape.size() > 2 ? shape.back() : 1;
    positions = &weight.positions;
    values = &weight.values;
    if (weight.sparse) return;
    auto found = std::make_shared<Collected>();
    auto *floats = (const float *)weight.dense();
    auto *bytes = (const int8_t *)weight.dense();
    for (int64_t i = 0, count = weight.type.count(); i < count; i++)
        if (float value = whole ? (float)bytes[i] : floats[i]; value != 0)
            found->positions.push_back((uint32_t)i), found->values.push_back(value);
    positions = &found->positions;
    values = &found->values;
    collected = found;
}

SparseWeight SparseWeight::unfolded() const {
    SparseWeight other = *this;
    other.inputs = inputs * rows * columns;
    if (whole) other.unfolded_taps = rows * columns;
    else other.group_inputs *= rows * columns;
    other.rows = other.columns = 1;
    return other;
}

double SparseWeight::density() const {
    return (double)nonzeros() / std::max(1.0, (double)outputs * (double)group_inputs * (double)(rows * columns));
}

std::vector<int32_t> SparseWeight::sums() const {
    std::vector<int32_t> sums(outputs);
    int64_t filter = group_inputs * taps();
    for (size_t i = 0; i < values->size(); i++) sums[(*positions)[i] / filter] += (int32_t)(*values)[i];
    return sums;
}

PackedWeight SparseWeight::pack(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk) const {
    PackedWeight packed;
    packed.bias.assign(outputs, 0.0f);
    if (bias) std::copy_n((const float *)bias->dense(), outputs, packed.bias.begin());
    if (whole) pack_blocks(input, padding, dilation, chunk, packed);
    else pack_values(input, padding, dilation, chunk, packed);
    return packed;
}

void SparseWeight::pack_values(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk,
                               PackedWeight &packed) const {
    int64_t group_outputs = outputs / groups;
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
        packed.entries[next[part]++] = {offset, {(*values)[i]}};
    });
}

void SparseWeight::pack_blocks(const ActivationLayout &input, Pair padding, Pair dilation, int64_t chunk,
                               PackedWeight &packed) const {
    const int64_t taps = this->taps(), group_outputs = outputs / groups;
    const int64_t filter = group_inputs * taps, slots = (blocks_of(group_inputs) + 1) * taps, bytes = input.lanes * 4;
    const int64_t chunks = (inputs + chunk - 1) / chunk;
    /* A slot is a block of input channels at a position of the kernel. For those of one output channel: */
    std::vector<std::array<int8_t, BLOCK>> weights(slots);
    std::vector<int64_t> used;
    struct Placed {
        int64_t part; /* chunk and output channel */
        fggp_entry entry;
    };
    std::vector<Placed> placed;
    size_t i = 0;
    for (int64_t output = 0; output < outputs; output++) {
        const int64_t first_input = output / group_outputs * group_inputs, first_block = first_input / BLOCK;
        used.clear();
        for (; i < positions->size() && (*positions)[i] < (output + 1) * filter; i++) {
            const int64_t place = (*positions)[i] - output * filter, channel = first_input + place / taps;
            const int64_t slot = (channel / BLOCK - first_block) * taps + place % taps;
            auto &block = weights[slot];
            if (block == std::array<int8_t, BLOCK>{}) used.push_back(slot);
            block[channel % BLOCK] = (int8_t)(*values)[i];
        }
        std::sort(used.begin(), used.end());
        for (int64_t slot : used) {
            const int64_t block = first_block + slot / taps, tap = slot % taps;
            const int64_t y = tap / columns * dilation.rows - padding.rows, x = tap % columns * dilation.columns - padding.columns;
            const int64_t plane = unfolded_taps ? block * taps + tap : block;
            const int64_t offset = plane * input.plane + (unfolded_taps ? 0 : y * input.row + x);
            fggp_entry entry;
            entry.offset = (int32_t)(offset * bytes);
            memcpy(&entry.weights, weights[slot].data(), BLOCK);
            placed.push_back({plane / chunk * outputs + output, entry});
            weights[slot] = {};
        }
    }
    packed.starts.assign(chunks * outputs + 1, 0);
    packed.entries.resize(placed.size());
    for (auto &one : placed) packed.starts[one.part + 1]++;
    for (int64_t part = 1; part <= chunks * outputs; part++) packed.starts[part] += packed.starts[part - 1];
    std::vector<uint32_t> next(packed.starts.begin(), packed.starts.end() - 1);
    for (auto &one : placed) packed.entries[next[one.part]++] = one.entry;
}

} // namespace fggp
