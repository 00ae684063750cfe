/* Operators that compute each number of their output from many numbers along some dimensions. */
#include <algorithm>
#include <cmath>
#include <cstring>

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
    template <class T> static T add(T state, T x) { /* also of vectors */
        state = x > state ? x : state;
        return x != x ? x : state;
    }
    static State join(State a, State b) { return add(a, b); }
};
template <class In, class State> struct Smallest {
    static State start() { return std::is_floating_point<State>() ? (State)INFINITY : (State)INT64_MAX; }
    template <class T> static T add(T state, T x) { /* also of vectors */
        state = x < state ? x : state;
        return x != x ? x : state;
    }
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
constexpr int MANY = 32; /* loops of so many steps are put into vectors */

/* A reduction: its states are as many as there are numbers in the output. */
struct Reduction {
    const char *name;
    Type in, out;
    void (*start)(void *states, int64_t count);
    void (*row)(void *state, const void *x, int64_t count);      /* adds numbers to one state */
    void (*columns)(void *states, const void *x, int64_t count); /* adds a number to each state */
    void (*finish)(void *out, const void *states, int64_t count, int64_t each);
    bool of_none; /* whether it is defined for no numbers */
};

template <class Function, class State> void start(void *states, int64_t count) {
    for (int64_t i = 0; i < count; i++) ((State *)states)[i] = Function::start();
}
template <class Function, class In, class State> void add_row(void *state, const void *from, int64_t count) {
    const In *x = (const In *)from;
    State sum = *(State *)state;
    int64_t i = 0;
    constexpr int SOME = 16; /* independent states */
    if (count >= 2 * SOME) {
        State states[SOME];
        for (int k = 0; k < SOME; k++) states[k] = Function::start();
        for (; i + SOME <= count; i += SOME)
            for (int k = 0; k < SOME; k++) states[k] = Function::add(states[k], x[i + k]);
        for (int k = 0; k < SOME; k++) sum = Function::join(sum, states[k]);
    }
    for (; i < count; i++) sum = Function::add(sum, x[i]);
    *(State *)state = sum;
}
template <class Function, class In, class State> void add_columns(void *to, const void *from, int64_t count) {
    const In *__restrict x = (const In *)from;
    State *__restrict states = (State *)to;
    int64_t i = 0;
    for (; i + MANY <= count; i += MANY)
        for (int k = 0; k < MANY; k++) states[i + k] = Function::add(states[i + k], x[i + k]);
    for (; i < count; i++) states[i] = Function::add(states[i], x[i]);
}
/* The same for the choice of a float, which compilers do not put into vectors. */
template <class Function> void choose_row(void *state, const void *from, int64_t count) {
    const float *x = (const float *)from;
    float &chosen = *(float *)state;
    int64_t i = 0;
    if (count >= LANES) {
        vec all = load(x);
        for (i = LANES; i + LANES <= count; i += LANES) all = Function::add(all, load(x + i));
        for (int k = 0; k < LANES; k++) chosen = Function::add(chosen, (float)all[k]);
    }
    for (; i < count; i++) chosen = Function::add(chosen, x[i]);
}
template <class Function> void choose_columns(void *to, const void *from, int64_t count) {
    float *states = (float *)to;
    in_float(states, count, [](vec state, vec x) { return Function::add(state, x); }, states, (const float *)from);
}
template <class State, class Out> void finish(void *out, const void *states, int64_t count, int64_t) {
    for (int64_t i = 0; i < count; i++) ((Out *)out)[i] = (Out)((const State *)states)[i];
}
void finish_mean(void *out, const void *states, int64_t count, int64_t each) {
    for (int64_t i = 0; i < count; i++) ((float *)out)[i] = (float)(((const double *)states)[i] / (double)each);
}

void reduce(const Reduction &reduction, const Array &in, const Array &out, const Parts &parts, Operations &operations) {
    const char *x = (const char *)in.data;
    char *to = (char *)out.data;
    int64_t in_bytes = bytes_of(reduction.in), out_bytes = bytes_of(reduction.out);
    if (parts.rows) {
        int64_t row = parts.reduced.sizes.back(), count = parts.each ? parts.each / row : 0;
        int kept = (int)parts.kept.sizes.size(), reduced = (int)parts.reduced.sizes.size() - 1;
        operations.push_back(loop(parts.outputs, parts.each, [=](Range range, const Call &, float *) {
            for (int64_t o = range.begin; o < range.end; o++) {
                const char *from = x + parts.kept.offset(0, o, kept) * in_bytes;
                int64_t state; /* of any type */
                reduction.start(&state, 1);
                for (int64_t i = 0; i < count; i++)
                    reduction.row(&state, from + parts.reduced.offset(0, i, reduced) * in_bytes, row);
                reduction.finish(to + o * out_bytes, &state, 1, parts.each);
            }
        }));
        return;
    }
    int64_t row = parts.kept.sizes.empty() ? 1 : parts.kept.sizes.back(), blocks = (row + COLUMNS - 1) / COLUMNS;
    int kept = std::max(0, (int)parts.kept.sizes.size() - 1), reduced = (int)parts.reduced.sizes.size();
    int64_t work = parts.each * std::min(row, COLUMNS);
    operations.push_back(loop(parts.outputs / row * blocks, work, [=](Range range, const Call &, float *) {
        for (int64_t piece = range.begin; piece < range.end; piece++) {
            int64_t column = piece % blocks * COLUMNS, index = piece / blocks;
            int64_t columns = std::min(COLUMNS, row - column);
            const char *from = x + (parts.kept.offset(0, index, kept) + column) * in_bytes;
            int64_t states[COLUMNS]; /* of any type */
            reduction.start(states, columns);
            for (int64_t i = 0; i < parts.each; i++)
                reduction.columns(states, from + parts.reduced.offset(0, i, reduced) * in_bytes, columns);
            reduction.finish(to + (index * row + column) * out_bytes, states, columns, parts.each);
        }
    }));
}

template <class Function> constexpr Reduction choice(const char *name) {
    return {name, F32, F32, start<Function, float>, choose_row<Function>, choose_columns<Function>,
            finish<float, float>, false};
}
template <template <class, class> class Function, class In, class State, class Out>
constexpr Reduction reduction(const char *name, Type in, Type out, bool of_none) {
    typedef Function<In, State> F;
    return {name, in, out, start<F, State>, add_row<F, In, State>, add_columns<F, In, State>,
            finish<State, Out>, of_none};
}

const Reduction REDUCTIONS[] = {
    reduction<Sum, float, double, float>("sum", F32, F32, true),
    {"mean", F32, F32, start<Sum<float, double>, double>, add_row<Sum<float, double>, float, double>,
     add_columns<Sum<float, double>, float, double>, finish_mean, true},
    reduction<Product, float, double, float>("prod", F32, F32, true),
    choice<Largest<float, float>>("max"),
    choice<Smallest<float, float>>("min"),
    reduction<Any, float, uint8_t, uint8_t>("any", F32, BOOL, true),
    reduction<All, float, uint8_t, uint8_t>("all", F32, BOOL, true),
    reduction<Sum, int64_t, whole, int64_t>("sum", I64, I64, true),
    reduction<Product, int64_t, whole, int64_t>("prod", I64, I64, true),
    reduction<Largest, int64_t, int64_t, int64_t>("max", I64, I64, false),
    reduction<Smallest, int64_t, int64_t, int64_t>("min", I64, I64, false),
    reduction<Any, int64_t, uint8_t, uint8_t>("any", I64, BOOL, true),
    reduction<All, int64_t, uint8_t, uint8_t>("all", I64, BOOL, true),
    reduction<Sum, uint8_t, whole, int64_t>("sum", BOOL, I64, true),
    reduction<Product, uint8_t, whole, int64_t>("prod", BOOL, I64, true),
    reduction<Any, uint8_t, uint8_t, uint8_t>("max", BOOL, BOOL, false),
    reduction<All, uint8_t, uint8_t, uint8_t>("min", BOOL, BOOL, false),
    reduction<Any, uint8_t, uint8_t, uint8_t>("any", BOOL, BOOL, true),
    reduction<All, uint8_t, uint8_t, uint8_t>("all", BOOL, BOOL, true),
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

FGGP_ONCE std::vector<TensorType> infer_reduce(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    Type type = inputs[0]->type;
    const Shape &shape = inputs[0]->shape;
    std::vector<int> dims = dims_of(node, (int)shape.size());
    bool keep = node.flag("keep", false), position = is_position(node), of_none = false;
    if (position) {
        if (type == BOOL) node.refuse("its function " + node.text("function") + " is not for BOOL");
        if (dims.size() != 1)
            node.refuse("\"dims\" has " + std::to_string(dims.size()) + " numbers; a position is along one dimension");
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
            node.refuse("the dimension " + std::to_string(d) + " of " + text_of(*inputs[0]) +
                        " has no numbers to choose from");
        if (!reduces) out.push_back(shape[d]);
        else if (keep) out.push_back(1);
    }
    return {{type, out}};
}

/* Whether x comes before the best so far: larger, or the first NaN. */
template <class T> bool better(T x, T best) { return x > best || (x != x && best == best); }

/* Where along the axis the largest number is, or the smallest. */
template <class T, bool smallest>
void make_position(const T *x, int64_t *to, const Axis &axis, Operations &operations) {
    auto sign = [](T v) { /* reverses the order for the smallest */
        return smallest ? std::is_floating_point<T>() ? (T)-v : (T)~(int64_t)v : v;
    };
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

FGGP_ONCE void make_reduce(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                           Operations &operations) {
    const TensorType &type = inputs[0]->type;
    if (!out[0].type.count()) return;
    if (!is_position(node))
        return reduce(reduction_of(node, type.type), *inputs[0], out[0], Parts(type.shape, dims_of(node, type.rank())),
                      operations);
    Axis axis(type.shape, dims_of(node, type.rank())[0]);
    bool smallest = node.text("function") == "argmin";
    const Array &x = *inputs[0];
    int64_t *to = (int64_t *)out[0].data;
    if (type.type == F32)
        (smallest ? make_position<float, true> : make_position<float, false>)(x.floats(), to, axis, operations);
    else
        (smallest ? make_position<int64_t, true> : make_position<int64_t, false>)(x.integers(), to, axis, operations);
}

/* ---- cumsum ---- */

FGGP_ONCE std::vector<TensorType> infer_cumsum(const Node &node, const InputTypes &inputs, const Sizes &) {
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
            const In *__restrict from = x + first;
            Out *__restrict out = to + first;
            if (columns == 1) {
                State sum = 0;
                for (int64_t i = 0; i < axis.count; i++)
                    out[i * axis.inner] = (Out)(sum += (State)from[i * axis.inner]);
                continue;
            }
            State states[COLUMNS] = {};
            for (int64_t i = 0; i < axis.count; i++, from += axis.inner, out += axis.inner) {
                int64_t k = 0;
                for (; k + MANY <= columns; k += MANY)
                    for (int j = 0; j < MANY; j++) out[k + j] = (Out)(states[k + j] += (State)from[k + j]);
                for (; k < columns; k++) out[k] = (Out)(states[k] += (State)from[k]);
            }
        }
    }));
}
FGGP_ONCE void make_cumsum(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
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

FGGP_ONCE std::vector<TensorType> infer_topk(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    if (inputs[0]->type == BOOL) node.refuse("its input is F32 or I64, not " + text_of(*inputs[0]));
    Shape shape = inputs[0]->shape;
    int dim = node.dimension("dim", (int)shape.size());
    int64_t count = node.size("count", sizes);
    if (count < 0 || count > shape[dim])
        node.refuse("\"count\" is " + std::to_string(count) + "; the dimension has " +
                    std::to_string(shape[dim]) + " numbers");
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
void make_topk(const T *x, T *values, int64_t *places, const Axis &axis, int64_t count, bool largest,
               Operations &operations) {
    constexpr int64_t WORK = 4;
    auto work = [=](Range range, const Call &, float *scratch) {
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
    };
    operations.push_back(loop(axis.outer * axis.inner, axis.count * WORK, count * 4, work));
}
FGGP_ONCE void make_topk(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &sizes,
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
