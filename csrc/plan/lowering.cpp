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

/* With at most this number of weights for each plane of its unfolded input, unfolding takes longer than it saves: so in
 * depthwise convolutions. */
constexpr int64_t WEIGHTS_WORTH_UNFOLDING = 2;
/* Operators read whole vectors, so a tensor's last one may reach beyond it. */
constexpr int64_t BYTES_READ_BEYOND = 128;

bool constant_or_absent(const Node &node, size_t input) {
    return input >= node.inputs.size() || node.inputs[input].value < 0;
}
bool is_constant(const Node &node, size_t input, Type type_of_it, int rank) {
    if (input >= node.inputs.size() || !node.inputs[input].constant) return false;
    auto &type = node.inputs[input].constant->type;
    return type.type == type_of_it && type.rank() == rank && type.count() > 0 && type.count() <= UINT32_MAX;
}

/* Disjoint sets of numbers. */
class Sets {
  public:
    explicit Sets(size_t count) : parent(count) { std::iota(parent.begin(), parent.end(), 0); }
    int of(int i) { return parent[i] == i ? i : parent[i] = of(parent[i]); }
    void join(int a, int b) { parent[of(a)] = of(b); }

  private:
    std::vector<int> parent;
};

} // namespace

std::vector<TensorType> infer_types(const Graph &graph, const std::vector<TensorType> &inputs) {
    Sizes sizes = graph.sizes_of(inputs);
    std::vector<TensorType> types(graph.values);
    std::copy(inputs.begin(), inputs.end(), types.begin());
    for (auto &node : graph.nodes) {
        InputTypes read;
        for (auto &operand : node.inputs)
            read.push_back(operand.absent() ? nullptr : operand.constant ? &operand.constant->type : &types[operand.value]);
        auto made = inferred(node, read, sizes);
        for (size_t i = 0; i < made.size(); i++) types[node.outputs[i]] = made[i];
    }
    return types;
}

bool is_sparse_product(const Node &node, const std::vector<TensorType> &types) {
    const bool quantized = is_quantized_product(node);
    if (!is_conv(node) && !is(node, "linear") && !quantized) return false;
    if (node.inputs.size() < 2 || node.inputs[0].value < 0 || !constant_or_absent(node, 2)) return false;
    if (node.inputs.size() > 3 && node.inputs[3].constant) return false;
    int rank = types[node.inputs[0].value].rank();
    if (!is_constant(node, 1, quantized ? Type::I8 : Type::F32, is_conv(node) ? rank : 2)) return false;
    if (quantized && !is_constant(node, SCALE_INPUT, Type::F32, 1)) return false;
    Kind kind = is_conv(node) ? Kind::IMAGES : Kind::TOKENS;
    for (int value : {node.inputs[0].value, node.outputs[0]})
        if ((types[value].type != Type::F32 && !quantized) || !can_read(types[value].shape, kind)) return false;
    if (kind == Kind::TOKENS) return true;
    if (rank < 3) return false;
    for (const char *key : {"stride", "padding", "dilation"})
        for (int64_t number : node.integers(key))
            if (number >= ATTRIBUTE_LIMIT) return false;
    for (int64_t size : Shape(node.inputs[1].constant->type.shape.begin() + 2, node.inputs[1].constant->type.shape.end()))
        if (size >= ATTRIBUTE_LIMIT) return false;
    return true;
}

Lowering::Lowering(const Graph &graph, const std::vector<TensorType> &inputs, int64_t batch, int lanes,
                   const ChooseProduct &choose)
    : types(infer_types(graph, inputs)), graph(graph), sizes(graph.sizes_of(inputs)), batch(batch), lanes(lanes),
      places(graph.values) {
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

/* What the kernels run. */

const TensorType *Lowering::type_of(const Node &node, size_t input) const {
    if (input >= node.inputs.size() || node.inputs[input].absent()) return nullptr;
    const Operand &operand = node.inputs[input];
    return operand.constant ? &operand.constant->type : &types[operand.value];
}

/* In one dimension the rows' stride is that of the columns, because the kernels have only one; there is one row. */
Lowering::Window Lowering::window_of(const Node &node) const {
    auto pair = [&](const std::vector<int64_t> &numbers, int64_t rows) {
        return numbers.size() == 2 ? Pair{numbers[0], numbers[1]} : Pair{rows < 0 ? numbers.at(0) : rows, numbers.at(0)};
    };
    Window window;
    if (is(node, "linear") || is(node, "quantized_linear")) return window;
    if (is_conv(node)) {
        auto &shape = node.inputs[1].constant->type.shape;
        window.kernel = pair(Shape(shape.begin() + 2, shape.end()), 1);
    } else
        window.kernel = pair(node.integers("kernel"), 1);
    window.stride = pair(node.integers("stride"), -1);
    window.padding = pair(node.integers("padding"), 0);
    if (node.has("dilation")) window.dilation = pair(node.integers("dilation"), 1);
    return window;
}

Lowering::Choice Lowering::product_choice(const Node &node) const {
    if (is_conv(node)) return {Native::PRODUCT, Kind::IMAGES, Kind::IMAGES, nullptr};
    int value = node.inputs[0].value;
    auto &shape = types[value].shape;
    bool one_image = shape.size() > 2 && shape[0] == 1 && can_read(shape, Kind::CHANNELS_LAST);
    Kind kind = (shape.size() == 2 && shape[0] == batch) ? Kind::IMAGES : one_image ? Kind::CHANNELS_LAST : Kind::TOKENS;
    for (Kind other : KINDS) /* rather as it is already */
        if ((other != Kind::IMAGES || shape.size() == 2) && made.count({value, other})) kind = other;
    return {Native::PRODUCT, kind, kind, nullptr};
}

/* The constant of a sum or product with one number for each channel: which input it is; -1: this is none. */
int Lowering::affine_constant(const Node &node, Kind kind) const {
    if (!is(node, "binary") || node.inputs.size() != 2) return -1;
    auto &function = node.text("function");
    int place = node.inputs[1].constant ? 1 : 0;
    if (!(function == "add" || function == "mul" || (function == "sub" && place == 1))) return -1;
    const Constant *constant = node.inputs[place].constant;
    auto &shape = types[node.outputs[0]].shape;
    if (!constant || constant->type.rank() > (int)shape.size() || *type_of(node, 1 - place) != types[node.outputs[0]])
        return -1;
    int first = (int)shape.size() - constant->type.rank();
    for (int d = 0; d < constant->type.rank(); d++)
        if (constant->type.shape[d] != 1 && first + d != channel_dimension(shape, kind)) return -1;
    return place;
}

/* How the kernels run an operation that is no product, if its inputs are of this kind. */
Lowering::Choice Lowering::native_choice(const Node &node, Kind kind) const {
    if (node.outputs.size() != 1 || node.inputs.empty()) return {};
    auto &out = types[node.outputs[0]];
    int values = 0;
    bool bytes = out.type == Type::U8, floats = true;
    for (auto &operand : node.inputs) {
        if (operand.value < 0) continue;
        if (!can_read(types[operand.value].shape, kind)) return {};
        bytes = bytes || types[operand.value].type == Type::U8;
        floats = floats && types[operand.value].type == Type::F32;
        values++;
    }
    if (node.inputs[0].value < 0 && !is(node, "binary")) return {};
    if (bytes) return values == (int)node.inputs.size() ? quantized_choice(node, kind) : Choice{};
    if (!values || !floats || out.type != Type::F32) return {};
    auto like = [&](Native native, Kind out_kind) {
        return can_read(out.shape, out_kind) ? Choice{native, kind, out_kind, nullptr} : Choice{};
    };
    int rank = node.inputs[0].value < 0 ? out.rank() : types[node.inputs[0].value].rank();
    auto &in = node.inputs[0].value < 0 ? out : types[node.inputs[0].value];
    bool images = kind == Kind::IMAGES;
    if (is(node, "activate")) return like(Native::AFFINE, kind);
    if (is(node, "affine") && channel_dimension(in.shape, kind) == 1 && values == 1) return like(Native::AFFINE, kind);
    if (is(node, "add") && values == 2) return like(Native::SUM, kind);
    if (is(node, "binary")) {
        if (affine_constant(node, kind) >= 0) return like(Native::AFFINE, kind);
        if (values == 2 && node.text("function") == "add" && *type_of(node, 0) == out && *type_of(node, 1) == out)
            return like(Native::SUM, kind);
        return {};
    }
    if ((is(node, "layer_norm") || is(node, "rms_norm")) && values == 1 && node.integer("dims") == 1 &&
        channel_dimension(in.shape, kind) == rank - 1)
        return like(Native::NORM, kind);
    if (is(node, "gate") && images && values == 2) return like(Native::GATE, kind);
    if (is(node, "concat") && values == (int)node.inputs.size() &&
        node.dimension("dim", rank) == channel_dimension(in.shape, kind))
        return like(Native::COPY, kind);
    if (is(node, "channels") && images && values == (int)node.inputs.size()) return like(Native::COPY, kind);
    if (is(node, "slice") && node.dimension("dim", rank) == channel_dimension(in.shape, kind))
        return like(Native::COPY, kind);
    if (is(node, "permute")) {
        /* Channels that move to the end, or back, stay where they are in the kernels' layout. */
        std::vector<int> to_last = {0}, to_first = {0, rank - 1};
        for (int d = 2; d < rank; d++) to_last.push_back(d), to_first.push_back(d - 1);
        to_last.push_back(1);
        auto dims = node.dimensions("dims", rank);
        if (images && rank > 2 && dims == to_last) return like(Native::ALIAS, Kind::CHANNELS_LAST);
        if (kind == Kind::CHANNELS_LAST && dims == to_first) return like(Native::ALIAS, Kind::IMAGES);
        return {};
    }
    if (is(node, "reduce") && kind != Kind::TOKENS && rank > 2 && node.text("function") == "mean") {
        auto dims = node.dimensions("dims", rank);
        std::sort(dims.begin(), dims.end());
        std::vector<int> pixels(rank - 2);
        std::iota(pixels.begin(), pixels.end(), images ? 2 : 1);
        return dims == pixels ? like(Native::ADAPTIVE_AVERAGE, node.flag("keep", false) ? kind : Kind::IMAGES) : Choice{};
    }
    if (!images) return {};
    if (is(node, "flatten") || (is(node, "reshape") && out.rank() == 2 && rank > 2 && out.shape[0] == in.shape[0]))
        return like(image_sizes(in.shape, kind).pixels() == 1 ? Native::ALIAS : Native::FLATTEN, kind);
    if (rank < 3) return {};
    if (is(node, "adaptive_average_pool")) return like(Native::ADAPTIVE_AVERAGE, kind);
    if (is(node, "max_pool") || is(node, "average_pool")) {
        for (const char *key : {"kernel", "stride", "padding", "dilation"})
            if (node.has(key))
                for (int64_t number : node.integers(key))
                    if (number >= ATTRIBUTE_LIMIT) return {};
        return like(Native::POOL, kind);
    }
    return {};
}

/* The kernels run sparse products, and operations whose inputs all are in their layout. */
void Lowering::choose_native(const ChooseProduct &choose) {
    chosen.clear();
    made.clear();
    numbers.clear();
    activations.clear();
    for (auto &node : graph.nodes) {
        if (excluded.count(&node)) continue;
        Choice choice;
        if (is_sparse_product(node, types)) {
            choice = product_choice(node);
            choice.weight = choose(node, choice.in, types);
            if (!choice.weight) continue;
        } else
            for (Kind kind : KINDS) {
                bool all_made = true;
                for (auto &operand : node.inputs) all_made = all_made && (operand.value < 0 || made.count({operand.value, kind}));
                if (all_made) choice = native_choice(node, kind);
                if (choice.native != Native::NONE) break;
            }
        if (choice.native == Native::NONE && is(node, "quantize")) choice = quantize_choice(node);
        if (choice.native == Native::NONE) continue;
        chosen[&node] = choice;
        Key out = {node.outputs[0], choice.out};
        made.insert(out);
        for (auto &operand : node.inputs)
            if (operand.value >= 0) activation(operand.value, choice.in);
        if (choice.native == Native::ALIAS)
            numbers[out] = numbers.at({node.inputs[0].value, choice.in});
        else
            activation(out.first, out.second);
    }
}

Lowering::Activation &Lowering::activation(int value, Kind kind) {
    auto found = numbers.find({value, kind});
    if (found == numbers.end()) {
        Activation made;
        made.sizes = image_sizes(types[value].shape, kind);
        made.bytes = types[value].type == Type::U8;
        made.lanes = kind == Kind::TOKENS ? 1 : made.sizes.images == batch ? lanes : made.sizes.images >= LANES ? LANES : 1;
        found = numbers.insert({{value, kind}, (int)activations.size()}).first;
        activations.push_back(made);
    }
    return activations[found->second];
}

/* Margins: all readers of an activation determine the padding around it. */

void Lowering::choose_margins() {
    Sets same_row(activations.size());
    for (auto &[node, choice] : chosen) {
        if (choice.native != Native::PRODUCT) continue;
        int in = numbers.at({node->inputs[0].value, choice.in}), out = numbers.at({node->outputs[0], choice.out});
        bool unfolds = needs_unfolding(*node), gaps = strided(*node);
        if (activations[in].lanes == 1 && !to_one_pixel(*node) && !gaps) {
            /* Vectors cross the ends of rows, so input and output need rows of the same length. */
            if (!unfolds) same_row.join(in, out);
            if (node->inputs.size() > 3 && !node->inputs[3].absent())
                same_row.join(numbers.at({node->inputs[3].value, choice.in}), out);
        }
        if (unfolds) continue;
        Window window = window_of(*node);
        Margin margin;
        margin.rows = window.padding.rows;
        margin.columns = window.padding.columns;
        margin.reach_rows = std::max<int64_t>(0, (window.kernel.rows - 1) * window.dilation.rows - margin.rows);
        margin.reach_columns = std::max<int64_t>(0, (window.kernel.columns - 1) * window.dilation.columns - margin.columns);
        if (gaps) margin.reach_columns += 2 * LANES;
        activations[in].margin.include(margin);
        if (activations[in].bytes && (margin.rows || margin.columns)) {
            if (activations[in].padding < 0) activations[in].padding = zero_of(*node);
        }
    }
    std::vector<int64_t> row(activations.size()), members(activations.size());
    for (size_t i = 0; i < activations.size(); i++) {
        int group = same_row.of((int)i);
        row[group] = std::max(row[group], activations[i].sizes.width + activations[i].margin.columns);
        members[group]++;
    }
    for (size_t i = 0; i < activations.size(); i++)
        if (int group = same_row.of((int)i); members[group] > 1) activations[i].row = row[group];
}

/* Whether the kernels do not support the stride, so that the input must be unfolded first. */
bool Lowering::needs_unfolding(const Node &node) const {
    if (!is_conv(node)) return false;
    Pair stride = window_of(node).stride;
    bool single = activation(node.inputs[0].value, Kind::IMAGES).lanes == 1;
    if (stride == Pair{1, 1}) return false;
    return single ? !to_one_pixel(node) && !strided(node) : stride != Pair{2, 2};
}

/* Whether the kernels read a single image with gaps, instead of an unfolded copy of it. */
bool Lowering::strided(const Node &node) const {
    if (!is(node, "conv") || to_one_pixel(node)) return false; /* not of whole numbers: they are few enough to unfold */
    const Activation &in = activation(node.inputs[0].value, Kind::IMAGES);
    Window window = window_of(node);
    if (in.lanes > 1 || window.stride != Pair{2, 2}) return false;
    int64_t planes = in.sizes.channels * window.kernel.rows * window.kernel.columns;
    return chosen.at(&node).weight->nonzeros() <= WEIGHTS_WORTH_UNFOLDING * planes;
}

/* Whether each output channel is one pixel of a single image, too few to fill a vector. */
bool Lowering::to_one_pixel(const Node &node) const {
    const Activation &out = activation(node.outputs[0], chosen.at(&node).out);
    return out.lanes == 1 && out.sizes.pixels() == 1;
}

/* Whether something is too large for the kernels' numbers. */
bool Lowering::too_large(const Node &node) const {
    const Choice &choice = chosen.at(&node);
    for (auto &operand : node.inputs)
        if (operand.value >= 0 && layout_of(activation(operand.value, choice.in)).too_large()) return true;
    if (layout_of(activation(node.outputs[0], choice.out)).too_large()) return true;
    if (choice.native != Native::PRODUCT) return false;
    ActivationLayout read = layout_of(activation(node.inputs[0].value, choice.in));
    if (needs_unfolding(node)) read = unfolded_layout(node);
    return read.too_large() || read.exceeds_offsets();
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
