/* What the kernels run, and the margins around what it reads. */
#include <algorithm>
#include <numeric>

#include "operators/quantized.h"
#include "plan/lowering.h"
#include "plan/nodes.h"
#include "vectors.h"

namespace fggp {
namespace {

/* With at most this number of weights for each plane of its unfolded input, unfolding takes longer than it saves: so in
 * depthwise convolutions. */
constexpr int64_t WEIGHTS_WORTH_UNFOLDING = 2;

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

} // namespace fggp
