/* Operators that compute each number of their output from many numbers along some dimensions. */
#include <algorithm>
#include <cmath>

#include "operators/broadcast.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "runtime/functions.h"

namespace fggp {
namespace {

constexpr Type F32 = Type::F32, I64 = Type::I64, BOOL = Type::BOOL;

typedef uint64_t whole; /* I64 in arithmetic, which wraps around */

/* ---- reduce ---- */

/* What a reduction does with each number of type In. Sums and products of floats are those of doubles. */
template <class In, class State> struct Sum {
    static State start() { return 0; }
    static State add(State state, In x) { return state + (State)x; }
    static State join(State a, State b) { return a + b; }
};
template <class In, class State> struct Product {
    static State start() { return 1; }
    static State add(State state, In x) { return state * (State)x; }
    static State join(State a, State b) { return a * b; }
};
template <class In, class State> struct Largest { /* NaN if there is one */
    static State start() { return std::is_floating_point<State>() ? (State)-INFINITY : (State)INT64_MIN; }
    static State add(State state, In x) { return (x > state) | (x != x) ? x : state; }
    static State join(State a, State b) { return add(a, b); }
};
template <class In, class State> struct Smallest {
    static State start() { return std::is_floating_point<State>() ? (State)INFINITY : (State)INT64_MAX; }
    static State add(State state, In x) { return (x < state) | (x != x) ? x : state; }
    static State join(State a, State b) { return add(a, b); }
};
template <class In, class State> struct Any {
    static State start() { return 0; }
    static State add(State state, In x) { return state | (State)(x != 0); }
    static State join(State a, State b) { return a | b; }
};
template <class In, class State> struct All {
    static State start() { return 1; }
    static State add(State state, In x) { return state & (State)(x != 0); }
    static State join(State a, State b) { return a & b; }
};

/* A tensor's dimensions, those that are reduced and those that are kept. Either the last kept dimension is the last of
 * the tensor, or the last reduced one is. */
struct Parts {
    Dimensions kept, reduced;
    int64_t outputs = 1, each = 1; /* numbers of the output, and how many each is made of */
    bool rows = false;             /* the last dimension is a reduced one */

    Parts(const Shape &shape, const std::vector<int> &dims) {
        auto strides = row_major(shape);
        kept.strides.resize(1);
        reduced.strides.resize(1);
        Dimensions *last = nullptr;
        for (size_t d = 0; d < shape.size(); d++) {
            bool reduces = std::find(dims.begin(), dims.end(), (int)d) != dims.end();
            (reduces ? each : outputs) *= shape[d];
            if (shape[d] == 1) continue;
            Dimensions *part = reduces ? &reduced : &kept;
            if (part == last) {
                part->sizes.back() *= shape[d];
                part->strides[0].back() = strides[d];
            } else {
                part->sizes.push_back(shape[d]);
                part->strides[0].push_back(strides[d]);
            }
            last = part;
            rows = reduces;
        }
    }
};

constexpr int64_t COLUMNS = 256;

/* Reduce `count` numbers that lie next to each other. */
template <class Function, class In, class State> State reduce_row(const In *x, int64_t count, State state) {
    constexpr int MANY = 32; /* independent states, which the compiler puts into vectors */
    if (count >= 2 * MANY) {
        State states[MANY];
        std::fill(states, states + MANY, Function::start());
        int64_t vectors = count / MANY;
        for (int64_t i = 0; i < vectors; i++, x += MANY)
            for (int k = 0; k < MANY; k++) states[k] = Function::add(states[k], x[k]);
        for (int k = 0; k < MANY; k++) state = Function::join(state, states[k]);
        count %= MANY;
    }
    for (int64_t i = 0; i < count; i++) state = Function::add(state, x[i]);
    return state;
}

template <class Function, class In, class State, class Out, class Finish>
void reduce(const In *x, Out *to, const Parts &parts, Operations &operations, const Finish &finish) {
    if (parts.rows) {
        int64_t row = parts.reduced.sizes.back(), count = parts.each ? parts.each / row : 0;
        int kept = (int)parts.kept.sizes.size(), reduced = (int)parts.reduced.sizes.size() - 1;
        operations.push_back(loop(parts.outputs, parts.each, [=](Range range, const Call &, float *) {
            for (int64_t o = range.begin; o < range.end; o++) {
                const In *from = x + parts.kept.offset(0, o, kept);
                State state = Function::start();
                for (int64_t i = 0; i < count; i++)
                    state = reduce_row<Function>(from + parts.reduced.offset(0, i, reduced), row, state);
                to[o] = finish(state);
            }
        }));
        return;
    }
    int64_t row = parts.kept.sizes.empty() ? 1 : parts.kept.sizes.back(), blocks = (row + COLUMNS - 1) / COLUMNS;
    int kept = std::max(0, (int)parts.kept.sizes.size() - 1), reduced = (int)parts.reduced.sizes.size();
    int64_t pieces = parts.outputs ? parts.outputs / row * blocks : 0;
    operations.push_back(loop(pieces, parts.each * std::min(row, COLUMNS), [=](Range range, const Call &, float *) {
        for (int64_t piece = range.begin; piece < range.end; piece++) {
            int64_t column = piece % blocks * COLUMNS, columns = std::min(COLUMNS, row - column), index = piece / blocks;
            const In *from = x + parts.kept.offset(0, index, kept) + column;
            State states[COLUMNS];
            std::fill(states, states + columns, Function::start());
            for (int64_t i = 0; i < parts.each; i++) {
                const In *__restrict here = from + parts.reduced.offset(0, i, reduced);
                for (int64_t k = 0; k < columns; k++) states[k] = Function::add(states[k], here[k]);
            }
            for (int64_t k = 0; k < columns; k++) to[index * row + column + k] = finish(states[k]);
        }
    }));
}

template <template <class, class> class Function, class In, class State, class Out>
void make(const void *x, void *out, const Parts &parts, Operations &operations) {
    reduce<Function<In, State>, In, State>((const In *)x, (Out *)out, parts, operations,
                                           [](State state) { return (Out)state; });
}
void make_mean(const void *x, void *out, const Parts &parts, Operations &operations) {
    double count = (double)parts.each;
    reduce<Sum<float, double>, float, double>((const float *)x, (float *)out, parts, operations,
                                              [=](double sum) { return (float)(sum / count); });
}

struct Reduction {
    const char *name;
    Type in, out;
    void (*make)(const void *x, void *out, const Parts &, Operations &);
    bool of_none; /* whether it is defined for no numbers */
};
const Reduction REDUCTIONS[] = {
    {"sum", F32, F32, make<Sum, float, double, float>, true},
    {"mean", F32, F32, make_mean, true},
    {"prod", F32, F32, make<Product, float, double, float>, true},
    {"max", F32, F32, make<Largest, float, float, float>, false},
    {"min", F32, F32, make<Smallest, float, float, float>, false},
    {"any", F32, BOOL, make<Any, float, uint8_t, uint8_t>, true},
    {"all", F32, BOOL, make<All, float, uint8_t, uint8_t>, true},
    {"sum", I64, I64, make<Sum, int64_t, whole, int64_t>, true},
    {"prod", I64, I64, make<Product, int64_t, whole, int64_t>, true},
    {"max", I64, I64, make<Largest, int64_t, int64_t, int64_t>, false},
    {"min", I64, I64, make<Smallest, int64_t, int64_t, int64_t>, false},
    {"any", I64, BOOL, make<Any, int64_t, uint8_t, uint8_t>, true},
    {"all", I64, BOOL, make<All, int64_t, uint8_t, uint8_t>, true},
    {"sum", BOOL, I64, make<Sum, uint8_t, whole, int64_t>, true},
    {"prod", BOOL, I64, make<Product, uint8_t, whole, int64_t>, true},
    {"max", BOOL, BOOL, make<Any, uint8_t, uint8_t, uint8_t>, false},
    {"min", BOOL, BOOL, make<All, uint8_t, uint8_t, uint8_t>, false},
    {"any", BOOL, BOOL, make<Any, uint8_t, uint8_t, uint8_t>, true},
    {"all", BOOL, BOOL, make<All, uint8_t, uint8_t, uint8_t>, true},
};

bool is_position(const Node &node) { return node.text("function") == "argmax" || node.text("function") == "argmin"; }

const Reduction &reduction_of(const Node &node, Type type) {
    const std::string &name = node.text("function");
    bool known = false;
    for (auto &reduction : REDUCTIONS) {
        if (name != reduction.name) continue;
        if (reduction.in == type) return reduction;
        known = true;
    }
    if (known) node.refuse("its function " + name + " is not for " + name_of(type));
    node.refuse("it has no function \"" + name.substr(0, 40) + "\"");
}

std::vector<int> dims_of(const Node &node, int rank) {
    std::vector<int> dims = node.dimensions("dims", rank);
    if (dims.empty())
        for (int d = 0; d < rank; d++) dims.push_back(d);
    return dims;
}

std::vector<TensorType> infer_reduce(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    Type type = inputs[0]->type;
    const Shape &shape = inputs[0]->shape;
    std::vector<int> dims = dims_of(node, (int)shape.size());
    bool keep = node.flag("keep", false), position = is_position(node), of_none = false;
    if (position) {
        if (type == BOOL) node.refuse("its function " + node.text("function") + " is not for BOOL");
        if (dims.size() != 1) node.refuse("\"dims\" has " + std::to_string(dims.size()) + " numbers; a position is along one dimension");
        type = I64;
    } else {
        const Reduction &reduction = reduction_of(node, type);
        type = reduction.out;
        of_none = reduction.of_none;
    }
    Shape out;
    for (int d = 0; d < (int)shape.size(); d++) {
        bool reduces = std::find(dims.begin(), dims.end(), d) != dims.end();
        if (reduces && shape[d] == 0 && !of_none)
            node.refuse("the dimension " + std::to_string(d) + " of " + text_of(*inputs[0]) + " has no numbers to choose from");
        if (!reduces) out.push_back(shape[d]);
        else if (keep) out.push_back(1);
    }
    return {{type, out}};
}

/* Whether x comes before the best so far: larger, or the first NaN. */
template <class T> bool better(T x, T best) { return x > best || (x != x && best == best); }

/* Where along the axis the largest number is, or the smallest. */
template <class T, bool smallest> void make_position(const T *x, int64_t *to, const Axis &axis, Operations &operations) {
    auto sign = [](T v) { return smallest ? std::is_floating_point<T>() ? (T)-v : (T)~(int64_t)v : v; }; /* reverses order */
    operations.push_back(loop(axis.outer * axis.inner, axis.count, [=](Range range, const Call &, float *) {
        for (int64_t o = range.begin; o < range.end; o++) {
            const T *from = x + o / axis.inner * axis.count * axis.inner + o % axis.inner;
            int64_t found = 0;
            T best = sign(from[0]);
            for (int64_t i = 1; i < axis.count; i++) {
                T v = sign(from[i * axis.inner]);
                if (better(v, best)) best = v, found = i;
            }
            to[o] = found;
        }
    }));
}

void make_reduce(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                 Operations &operations) {
    const TensorType &type = inputs[0]->type;
    if (!out[0].type.count()) return;
    if (!is_position(node))
        return reduction_of(node, type.type)
            .make(inputs[0]->data, out[0].data, Parts(type.shape, dims_of(node, type.rank())), operations);
    Axis axis(type.shape, dims_of(node, type.rank())[0]);
    bool smallest = node.text("function") == "argmin";
    int64_t *to = (int64_t *)out[0].data;
    if (type.type == F32)
        (smallest ? make_position<float, true> : make_position<float, false>)(inputs[0]->floats(), to, axis, operations);
    else
        (smallest ? make_position<int64_t, true> : make_position<int64_t, false>)(inputs[0]->integers(), to, axis, operations);
}

/* ---- cumsum ---- */

std::vector<TensorType> infer_cumsum(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    node.dimension("dim", std::max(1, inputs[0]->rank()));
    return {{inputs[0]->type == F32 ? F32 : I64, inputs[0]->shape}};
}
template <class In, class State, class Out>
void make_cumsum(const In *x, Out *to, const Axis &axis, Operations &operations) {
    int64_t width = std::min(axis.inner, COLUMNS), blocks = (axis.inner + COLUMNS - 1) / COLUMNS;
    operations.push_back(loop(axis.outer * blocks, axis.count * width * 2, [=](Range range, const Call &, float *) {
        for (int64_t piece = range.begin; piece < range.end; piece++) {
            int64_t column = piece % blocks * COLUMNS, columns = std::min(COLUMNS, axis.inner - column);
            int64_t first = piece / blocks * axis.count * axis.inner + column;
            const In *from = x + first;
            Out *__restrict out = to + first;
            State states[COLUMNS];
            std::fill(states, states + columns, State(0));
            if (columns == 1) {
                State sum = 0;
                for (int64_t i = 0; i < axis.count; i++) out[i * axis.inner] = (Out)(sum += (State)from[i * axis.inner]);
                continue;
            }
            for (int64_t i = 0; i < axis.count; i++, from += axis.inner, out += axis.inner)
                for (int64_t k = 0; k < columns; k++) out[k] = (Out)(states[k] += (State)from[k]);
        }
    }));
}
void make_cumsum(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                 Operations &operations) {
    const Array &x = *inputs[0];
    if (!x.type.count()) return;
    Axis axis(node, x.type.shape);
    void *to = out[0].data;
    if (x.type.type == F32) make_cumsum<float, double>(x.floats(), (float *)to, axis, operations);
    else if (x.type.type == I64) make_cumsum<int64_t, whole>(x.integers(), (int64_t *)to, axis, operations);
    else make_cumsum<uint8_t, whole>(x.bools(), (int64_t *)to, axis, operations);
}

/* ---- topk ---- */

std::vector<TensorType> infer_topk(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    if (inputs[0]->type == BOOL) node.refuse("its input is F32 or I64, not " + text_of(*inputs[0]));
    Shape shape = inputs[0]->shape;
    int dim = node.dimension("dim", (int)shape.size());
    int64_t count = node.size("count", sizes);
    if (count < 0 || count > shape[dim])
        node.refuse("\"count\" is " + std::to_string(count) + "; the dimension has " + std::to_string(shape[dim]) + " numbers");
    if (!node.has("largest")) node.refuse("it has no \"largest\"");
    node.flag("largest", true);
    shape[dim] = count;
    return {{inputs[0]->type, shape}, {I64, shape}};
}

/* A number and its place. A number with a larger key comes first; of equal keys, the first place. */
struct Entry {
    int64_t key, place;
    bool operator<(const Entry &other) const { return key > other.key || (key == other.key && place < other.place); }
};
int64_t key_of(int64_t x) { return x; }
int64_t key_of(float x) { /* NaN is the largest number */
    if (x != x) return INT64_MAX;
    if (x == 0) return 0; /* both zeros are equal */
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits < 0 ? -(int64_t)(bits & 0x7fffffff) : bits;
}

template <class T>
void make_topk(const T *x, T *values, int64_t *places, const Axis &axis, int64_t count, bool largest, Operations &operations) {
    constexpr int64_t WORK = 4;
    operations.push_back(loop(axis.outer * axis.inner, axis.count * WORK, count * 4, [=](Range range, const Call &, float *scratch) {
        Entry *kept = (Entry *)scratch; /* a heap, the last in order on top */
        for (int64_t r = range.begin; r < range.end; r++) {
            int64_t outer = r / axis.inner, inner = r % axis.inner;
            const T *from = x + outer * axis.count * axis.inner + inner;
            for (int64_t i = 0; i < axis.count; i++) {
                int64_t key = key_of(from[i * axis.inner]);
                Entry entry{largest ? key : ~key, i};
                if (i < count) {
                    kept[i] = entry;
                    if (i == count - 1) std::make_heap(kept, kept + count);
                } else if (entry < kept[0]) {
                    std::pop_heap(kept, kept + count);
                    kept[count - 1] = entry;
                    std::push_heap(kept, kept + count);
                }
            }
            std::sort_heap(kept, kept + count);
            int64_t to = outer * count * axis.inner + inner;
            for (int64_t i = 0; i < count; i++, to += axis.inner) {
                values[to] = from[kept[i].place * axis.inner];
                places[to] = kept[i].place;
            }
        }
    }));
}
void make_topk(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &sizes,
               Operations &operations) {
    const Array &x = *inputs[0];
    if (!out[0].type.count()) return;
    Axis axis(node, x.type.shape);
    int64_t count = node.size("count", sizes), *places = (int64_t *)out[1].data;
    bool largest = node.flag("largest", true);
    if (x.type.type == F32) make_topk(x.floats(), (float *)out[0].data, places, axis, count, largest, operations);
    else make_topk(x.integers(), (int64_t *)out[0].data, places, axis, count, largest, operations);
}

} // namespace

const std::vector<Operator> REDUCTION_OPERATORS = {
    {"reduce", infer_reduce, make_reduce}, {"cumsum", infer_cumsum, make_cumsum}, {"topk", infer_topk, make_topk}};
} // namespace fggp
