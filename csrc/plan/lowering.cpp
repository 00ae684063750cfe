#include "plan/lowering.h"

#include <algorithm>
#include <numeric>

#include "operators/quantized.h"
#include "plan/nodes.h"
#include "runtime/channel_norm.h"
#include "runtime/planes.h"
#include "runtime/quantized_planes.h"
#include "runtime/transfers.h"
#include "vectors.h"

namespace fggp {
namespace {

/* Operators read whole vectors, so a tensor's last one may reach beyond it. */
constexpr int64_t BYTES_READ_BEYOND = 128;

} // namespace

Lowering::Lowering(const Graph &graph, const std::vector<TensorType> &inputs, int64_t batch, int lanes,
                   const ChooseProduct &choose)
    : types(infer_types(graph, inputs)), graph(graph), sizes(graph.sizes_of(inputs)), batch(batch), lanes(lanes),
      places(graph.values) {
    exclude_readers_of_constants();
    for (auto &node : graph.nodes)
        if (is_quantized_product(node) && node.inputs[0].value >= 0 && is_sparse_product(node, types))
            quantized_readers.insert({node.inputs[0].value, &node});
    /* Excluding an operation changes what is native and the margins, so the others are checked again. */
    for (bool again = true; again;) {
        choose_native(choose);
        choose_margins();
        again = false;
        for (auto &[node, choice] : chosen)
            if (too_large(*node) || other_padding(*node)) again = true, excluded.insert(node);
    }
    for (auto &one : activations) has_lanes = has_lanes || (one.lanes == lanes && one.sizes.images == batch);
    for (size_t i = 0; i < inputs.size(); i++) places[i] = {Place::INPUT, (int)i, nullptr};
    for (auto &node : graph.nodes) {
        auto found = chosen.find(&node);
        if (found != chosen.end()) {
            has_tokens = has_tokens || found->second.in == Kind::TOKENS;
            lower(node, found->second);
        } else {
            kernels_only = false;
            lower_operator(node);
        }
    }
    for (auto &output : graph.outputs) {
        const Operand &operand = output.operand;
        outputs.push_back(operand.constant ? Place{Place::CONSTANT, -1, operand.constant} : in_memory(operand.value));
    }
}

/* A value that is a constant in another shape is in no memory that changes from run to run, from which the kernels load:
 * operators read it where it is. */
void Lowering::exclude_readers_of_constants() {
    std::set<int> constants;
    for (auto &node : graph.nodes) {
        for (auto &operand : node.inputs)
            if (constants.count(operand.value)) excluded.insert(&node);
        if (find_operator(node.op)->same_bytes && (node.inputs[0].constant || constants.count(node.inputs[0].value)))
            constants.insert(node.outputs[0]);
    }
}

/* Storages, and conversions between the kernels' layout and row-major order. */

ActivationLayout Lowering::layout_of(const Activation &one) const {
    ImageSizes sizes = one.sizes;
    if (one.bytes) sizes.channels = blocks_of(sizes.channels);
    ActivationLayout layout = choose_layout(sizes, one.lanes, one.margin, one.row);
    layout.padding = (uint8_t)std::max(0, one.padding);
    return layout;
}

/* The layout of a convolution's unfolded input: a channel for each input channel and kernel position. */
ActivationLayout Lowering::unfolded_layout(const Node &node) const {
    const Activation &in = activation(node.inputs[0].value, Kind::IMAGES), &out = activation(node.outputs[0], Kind::IMAGES);
    Window window = window_of(node);
    ImageSizes unfolded = out.sizes;
    unfolded.channels = (in.bytes ? blocks_of(in.sizes.channels) : in.sizes.channels) * window.kernel.rows * window.kernel.columns;
    /* For single images, vectors cross the ends of rows, so it needs rows as long as the output's. */
    return choose_layout(unfolded, in.lanes, Margin(), in.lanes == 1 ? layout_of(out).row : 0);
}

int Lowering::new_storage(const ActivationLayout &layout, int may_overwrite) {
    if (may_overwrite >= 0 && !(storages[may_overwrite].layout == layout)) may_overwrite = -1;
    storages.push_back({layout, layout.floats() * 4, may_overwrite});
    return (int)storages.size() - 1;
}

/* A value's storage in the kernels' layout, with a step that loads it if it has none yet. */
int Lowering::input_storage(int value, Kind kind) {
    Activation &one = activation(value, kind);
    if (one.storage < 0) {
        Place from = row_major(value);
        int to = one.storage = new_storage(layout_of(one));
        Step step{Runner::CONVERSION, nullptr, {}, {to}, {}, {}};
        if (from.where == Place::STORAGE) step.reads.push_back(from.index);
        int slot = slot_of(from);
        auto strides = pixel_strides(types[value].shape, kind);
        auto images = (int32_t)one.sizes.images;
        bool bytes = one.bytes;
        int64_t channels = one.sizes.channels;
        step.add = [=](const Locations &at, Operations &operations) {
            operations.emplace_back(bytes ? new_load_bytes(slot, strides, at.tensor(to), images, channels)
                                          : new_load(slot, strides, at.tensor(to), images));
        };
        steps.push_back(std::move(step));
    }
    return one.storage;
}

int Lowering::output_storage(const Node &node, int may_overwrite) {
    Activation &one = activation(node.outputs[0], chosen.at(&node).out);
    return one.storage = new_storage(layout_of(one), may_overwrite);
}

/* Where a value is in row-major order, with a step that stores it there if it is not yet. */
Place Lowering::row_major(int value) {
    Place &place = places[value];
    if (place.where != Place::NOWHERE) return place;
    for (Kind kind : KINDS) {
        auto found = numbers.find({value, kind});
        if (found == numbers.end() || activations[found->second].storage < 0) continue;
        int from = activations[found->second].storage;
        storages.push_back({{}, types[value].bytes() + BYTES_READ_BEYOND, -1});
        place = {Place::STORAGE, (int)storages.size() - 1, nullptr};
        int slot = slot_of(place);
        auto strides = pixel_strides(types[value].shape, kind);
        auto images = (int32_t)activations[found->second].sizes.images;
        bool bytes = activations[found->second].bytes;
        int64_t channels = activations[found->second].sizes.channels;
        steps.push_back({Runner::CONVERSION, nullptr, {from}, {place.index}, [=](const Locations &at, Operations &operations) {
            operations.emplace_back(bytes ? new_store_bytes(at.tensor(from), slot, strides, images, channels)
                                          : new_store(at.tensor(from), slot, strides, images));
        }, {}});
        break;
    }
    return place;
}

/* The same, but not in the caller's memory. */
Place Lowering::in_memory(int value) {
    Place place = row_major(value);
    if (place.where != Place::INPUT) return place;
    auto found = copied.find(place.index);
    if (found == copied.end()) {
        int64_t bytes = types[place.index].bytes();
        storages.push_back({{}, bytes + BYTES_READ_BEYOND, -1});
        int to = (int)storages.size() - 1, slot = place.index;
        found = copied.insert({slot, to}).first;
        steps.push_back({Runner::CONVERSION, nullptr, {}, {to}, [=](const Locations &at, Operations &operations) {
            operations.emplace_back(new_copy_in(slot, at.address(to), bytes));
        }, {}});
    }
    return places[value] = {Place::STORAGE, found->second, nullptr};
}

/* Operations. */

void Lowering::add_step(const Node *node, const std::vector<int> &reads, int out, const Make &make) {
    steps.push_back({Runner::KERNELS, node, reads, {out}, [=](const Locations &at, Operations &operations) {
        std::vector<fggp_tensor> tensors;
        for (int read : reads) tensors.push_back(at.tensor(read));
        operations.emplace_back(make(tensors, at.tensor(out)));
    }, {}});
}

void Lowering::lower(const Node &node, const Choice &choice) {
    typedef const std::vector<fggp_tensor> &Read;
    typedef const fggp_tensor &Out;
    if (choice.native == Native::ALIAS) return;
    std::vector<int> reads;
    for (auto &operand : node.inputs)
        if (operand.value >= 0) reads.push_back(input_storage(operand.value, choice.in));
    if (choice.native != Native::PRODUCT && activation(node.inputs[0].value < 0 ? node.outputs[0] : node.inputs[0].value, choice.in).bytes)
        return lower_quantized(node, choice, reads);
    switch (choice.native) {
    case Native::QUANTIZE: return lower_quantized(node, choice, reads);
    case Native::PRODUCT: return lower_product(node, choice, reads);
    case Native::POOL: return lower_pool(node, reads[0]);
    case Native::AFFINE: return lower_affine(node, choice.in, reads[0]);
    case Native::NORM: return lower_norm(node, reads[0]);
    case Native::COPY: return lower_copy(node, choice.in, reads);
    case Native::ADAPTIVE_AVERAGE:
        return add_step(&node, reads, output_storage(node),
                        [](Read in, Out out) { return new_adaptive_average(in[0], out); });
    case Native::FLATTEN:
        return add_step(&node, reads, output_storage(node), [](Read in, Out out) { return new_flatten(in[0], out); });
    case Native::SUM:
    case Native::GATE: {
        auto make = choice.native == Native::SUM ? new_sum : new_gate;
        auto activation = node.activation();
        return add_step(&node, reads, output_storage(node, reads[0]),
                        [=](Read in, Out out) { return make(in[0], in[1], out, activation); });
    }
    case Native::DEQUANTIZE: /* of U8, above */
    case Native::ALIAS:
    case Native::NONE: break;
    }
}

void Lowering::lower_product(const Node &node, const Choice &choice, const std::vector<int> &reads) {
    Window window = window_of(node);
    int read = reads[0], residual = reads.size() > 1 ? reads[1] : -1;
    Convolve product{&node, *choice.weight, read, -1, residual, window.padding, window.dilation, window.stride.columns,
                     node.activation(), nullptr, {}};
    if (is_quantized_product(node)) quantize_product(node, product);
    if (needs_unfolding(node)) {
        int unfolded = new_storage(unfolded_layout(node));
        auto padding = (uint8_t)(product.quantized ? zero_of(node) : 0);
        add_step(&node, {read}, unfolded, [=](const std::vector<fggp_tensor> &in, const fggp_tensor &out) {
            return new_unfold(pool_of(window, in[0], out), padding);
        });
        product.input = read = unfolded;
        product.weight = product.weight.unfolded();
        product.padding = {0, 0}, product.dilation = {1, 1}, product.stride = 1;
    }
    product.out = output_storage(node, residual == read ? -1 : residual);
    product.quantized_as.out_padding = storages[product.out].layout.padding;
    Step step{Runner::KERNELS, &node, {read}, {product.out}, {}, {product}};
    if (residual >= 0) step.reads.push_back(residual);
    steps.push_back(std::move(step));
}

fggp_pool Lowering::pool_of(const Window &window, const fggp_tensor &in, const fggp_tensor &out) {
    fggp_pool pool{};
    pool.in = in;
    pool.out = out;
    auto set = [](int32_t *to, Pair pair) { to[0] = (int32_t)pair.rows, to[1] = (int32_t)pair.columns; };
    set(pool.kernel, window.kernel);
    set(pool.stride, window.stride);
    set(pool.padding, window.padding);
    set(pool.dilation, window.dilation);
    return pool;
}

void Lowering::lower_pool(const Node &node, int read) {
    Window window = window_of(node);
    bool largest = is(node, "max_pool");
    bool count_padding = !largest && node.flag("count_padding", true);
    float divisor = largest ? 0 : (float)node.number("divisor", 0);
    add_step(&node, {read}, output_storage(node), [=](const std::vector<fggp_tensor> &in, const fggp_tensor &out) {
        fggp_pool pool = pool_of(window, in[0], out);
        pool.count_padding = count_padding;
        pool.divisor = divisor;
        return largest ? new_max_pool(pool) : new_average_pool(pool);
    });
}

void Lowering::lower_affine(const Node &node, Kind kind, int read) {
    /* The numbers are copied, because a constant may have one for all channels. */
    int64_t channels = activation(node.outputs[0], kind).sizes.channels;
    auto numbers = [&](size_t input, float sign) {
        std::vector<float> found;
        if (input >= node.inputs.size() || !node.inputs[input].constant) return found;
        const Constant &constant = *node.inputs[input].constant;
        auto *all = (const float *)constant.dense();
        for (int64_t i = 0; i < channels; i++) found.push_back(sign * all[constant.type.count() == 1 ? 0 : i]);
        return found;
    };
    std::vector<float> scale, shift;
    if (is(node, "affine"))
        scale = numbers(1, 1), shift = numbers(2, 1);
    else if (is(node, "binary")) {
        auto &function = node.text("function");
        int place = affine_constant(node, kind);
        if (function == "mul") scale = numbers(place, 1);
        else shift = numbers(place, function == "sub" ? -1 : 1);
    }
    auto kept = std::make_shared<std::pair<std::vector<float>, std::vector<float>>>(std::move(scale), std::move(shift));
    auto activation = is(node, "binary") ? fggp_activation{FGGP_IDENTITY, 0, 0, 0} : node.activation();
    int out = output_storage(node, read);
    add_step(&node, {read}, out, [=](const std::vector<fggp_tensor> &in, const fggp_tensor &out) {
        return new_affine(in[0], out, kept->first.empty() ? nullptr : kept->first.data(),
                          kept->second.empty() ? nullptr : kept->second.data(), activation);
    });
}

void Lowering::lower_norm(const Node &node, int read) {
    auto numbers = [&](size_t input) {
        const Constant *constant = input < node.inputs.size() ? node.inputs[input].constant : nullptr;
        return constant ? (const float *)constant->dense() : nullptr;
    };
    const float *weight = numbers(1), *bias = numbers(2);
    auto epsilon = (float)node.number("epsilon");
    bool centred = is(node, "layer_norm");
    const ActivationLayout &layout = storages[read].layout;
    int out = output_storage(node, layout.row == layout.width ? read : -1);
    add_step(&node, {read}, out, [=](const std::vector<fggp_tensor> &in, const fggp_tensor &to) {
        return new_channel_norm(in[0], to, weight, bias, epsilon, centred);
    });
}

/* Channels of the inputs side by side, for each channel of the output. */
std::vector<int64_t> Lowering::channel_index(const Node &node, Kind kind) const {
    if (is(node, "channels")) return node.integers("index");
    std::vector<int64_t> index(activation(node.outputs[0], kind).sizes.channels);
    int64_t start = 0, step = 1;
    if (is(node, "slice")) {
        int64_t size = activation(node.inputs[0].value, kind).sizes.channels;
        step = node.integer("step", 1);
        start = node.has("start") ? node.size("start", sizes) : 0;
        if (start < 0) start += size;
        start = std::max<int64_t>(0, start);
    }
    for (size_t i = 0; i < index.size(); i++) index[i] = start + (int64_t)i * step;
    return index;
}

void Lowering::lower_copy(const Node &node, Kind kind, const std::vector<int> &reads) {
    std::vector<int64_t> index = channel_index(node, kind);
    if (activation(node.outputs[0], kind).bytes) { /* of whole blocks */
        index.resize(blocks_of((int64_t)index.size()));
        std::iota(index.begin(), index.end(), 0);
    }
    int out = output_storage(node);
    int64_t first = 0;
    for (int read : reads) {
        int64_t after = first + storages[read].layout.channels;
        bool like = storages[read].layout.padding == storages[out].layout.padding;
        auto pairs = std::make_shared<std::vector<int32_t>>();
        for (size_t to = 0; to < index.size(); to++)
            if (index[to] >= first && index[to] < after) {
                pairs->push_back((int32_t)(index[to] - first));
                pairs->push_back((int32_t)to);
            }
        add_step(&node, {read}, out, [=](const std::vector<fggp_tensor> &in, const fggp_tensor &to) {
            return new_copy(in[0], to, pairs->data(), (int32_t)pairs->size() / 2, like);
        });
        first = after;
    }
}

/* An operation on tensors in row-major order. */
void Lowering::lower_operator(const Node &node) {
    const Operator &op = *find_operator(node.op);
    if (op.same_bytes) {
        const Operand &operand = node.inputs[0];
        places[node.outputs[0]] =
            operand.constant ? Place{Place::CONSTANT, -1, operand.constant} : row_major(operand.value);
        return;
    }
    if (!op.make) node.refuse("this version of fggp only runs it in networks that are sparse");
    std::vector<Place> read;
    Step step{Runner::OPERATOR, &node, {}, {}, {}, {}};
    for (auto &operand : node.inputs) {
        read.push_back(operand.absent() ? Place() : operand.constant ? Place{Place::CONSTANT, -1, operand.constant} : in_memory(operand.value));
        if (read.back().where == Place::STORAGE) step.reads.push_back(read.back().index);
    }
    std::vector<TensorType> in_types(read.size()), out_types;
    for (size_t i = 0; i < read.size(); i++)
        if (auto *type = type_of(node, i)) in_types[i] = *type;
    for (int output : node.outputs) {
        out_types.push_back(types[output]);
        storages.push_back({{}, types[output].bytes() + BYTES_READ_BEYOND, -1});
        places[output] = {Place::STORAGE, (int)storages.size() - 1, nullptr};
        step.writes.push_back(places[output].index);
    }
    step.add = [&op, &node, read, in_types, out_types, writes = step.writes, sizes = sizes](const Locations &at, Operations &operations) {
        std::vector<Array> arrays(read.size()), outputs;
        InputArrays inputs;
        for (size_t i = 0; i < read.size(); i++) {
            bool constant = read[i].where == Place::CONSTANT;
            if (read[i].where != Place::NOWHERE)
                arrays[i] = {in_types[i], constant ? (void *)read[i].constant->dense() : at.address(read[i].index), constant};
            inputs.push_back(read[i].where == Place::NOWHERE ? nullptr : &arrays[i]);
        }
        for (size_t i = 0; i < writes.size(); i++) outputs.push_back({out_types[i], at.address(writes[i]), false});
        op.make(node, inputs, outputs, sizes, operations);
    };
    steps.push_back(std::move(step));
}

} // namespace fggp
