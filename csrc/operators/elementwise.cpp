/* Operators that compute each number of their output from the numbers at the same place of their inputs. */
#include <cmath>
#include <cstring>

#include "operators/activate.h"
#include "operators/broadcast.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"

namespace fggp {
namespace {

/* Kernels compute `count` elements of the output, which lie next to each other, as those of the inputs do. */
typedef void (*Kernel)(const void *const *in, void *out, int64_t count);

/* A function that the compiler vectorises: of one number, or of two. */
constexpr int STEP = 32;
template <class In, class Out, class Function> void each(const void *const *in, void *out, int64_t count) {
    in_steps<STEP>(
        (Out *)out, count,
        [](Out *__restrict to, const In *__restrict a) {
            for (int i = 0; i < STEP; i++) to[i] = Function::of(a[i]);
        },
        (const In *)in[0]);
}
template <class In, class Out, class Function> void each_pair(const void *const *in, void *out, int64_t count) {
    in_steps<STEP>(
        (Out *)out, count,
        [](Out *__restrict to, const In *__restrict a, const In *__restrict b) {
            for (int i = 0; i < STEP; i++) to[i] = Function::of(a[i], b[i]);
        },
        (const In *)in[0], (const In *)in[1]);
}
/* Functions of vectors of doubles. */
template <class Function> void each_double(const void *const *in, void *out, int64_t count) {
    in_double((float *)out, count, Function::of, (const float *)in[0]);
}

/* ---- one input ---- */

typedef uint64_t whole; /* I64 in arithmetic, which wraps around */

struct Neg {
    static float of(float x) { return -x; }
    static whole of(whole x) { return 0 - x; }
};
struct Abs {
    static float of(float x) { return std::fabs(x); }
    static whole of(whole x) { return (int64_t)x < 0 ? 0 - x : x; }
};
struct Sign { /* 0 for NaN */
    template <class T> static T of(T x) { return (T)((x > 0) - (x < 0)); }
};
struct Sqrt {
    static float of(float x) { return std::sqrt(x); }
};
struct Rsqrt {
    static float of(float x) { return 1 / std::sqrt(x); }
};
struct Reciprocal {
    static float of(float x) { return 1 / x; }
};
struct Floor {
    static float of(float x) { return std::floor(x); }
};
struct Ceil {
    static float of(float x) { return std::ceil(x); }
};
struct Round { /* halves to even */
    static float of(float x) { return std::nearbyint(x); }
};
struct IsNan {
    static uint8_t of(float x) { return x != x; }
};
struct Not {
    static uint8_t of(uint8_t x) { return x == 0; }
};
struct Expm1 {
    static dvec of(dvec x) { return Exponential(limited(x, -700, 700)).minus_one(); }
};
struct Log {
    static dvec of(dvec x) { return logarithm(x); }
};
struct Log1p {
    static dvec of(dvec x) { return logarithm_of_one_plus(x); }
};
struct Erf {
    static dvec of(dvec x) {
        dvec size = x < 0.0 ? -x : x, z = x * x; /* for |x| < ½, the first terms of the series */
        dvec p = z * (1.0 / 685440) - 1.0 / 75600;
        p = p * z + 1.0 / 9360;
        p = p * z - 1.0 / 1320;
        p = p * z + 1.0 / 216;
        p = p * z - 1.0 / 42;
        p = p * z + 0.1;
        p = p * z - 1.0 / 3;
        dvec large = 1.0 - complementary_error(limited(size, 0, 25));
        return size < 0.5 ? x * (p * z + 1.0) * 1.1283791670955126 : x < 0.0 ? -large : large;
    }
};
/* sin(x + quarter · π / 2) */
template <int quarter> struct Sine {
    static dvec of(dvec x) {
        constexpr double ROUND = 0x1.8p52; /* as in Exponential */
        dvec rounded = x * 0.63661977236758134 + ROUND, n = rounded - ROUND;
        dvec r = x - n * 0x1.921fb544p0;    /* half of π in two parts; the product with the first is exact */
        r = r - n * 0x1.0b4611a626331p-34;
        dvec z = r * r;
        dvec sine = z * (1.0 / 6227020800) - 1.0 / 39916800;
        sine = sine * z + 1.0 / 362880;
        sine = sine * z - 1.0 / 5040;
        sine = sine * z + 1.0 / 120;
        sine = sine * z - 1.0 / 6;
        sine = sine * z * r + r;
        dvec cosine = z * (1.0 / 479001600) - 1.0 / 3628800;
        cosine = cosine * z + 1.0 / 40320;
        cosine = cosine * z - 1.0 / 720;
        cosine = cosine * z + 1.0 / 24;
        cosine = cosine * z - 0.5;
        cosine = cosine * z + 1.0;
        lvec quarters = (lvec)rounded + quarter;
        dvec result = (quarters & 1) == 0 ? sine : cosine;
        result = (quarters & 2) == 0 ? result : -result;
        lvec far = ~((x < 0x1p20) & (x > -0x1p20)); /* where the two parts are not enough; also NaN */
        if (any(far))
            for (int i = 0; i < HALF; i++)
                if (far[i]) result[i] = quarter ? std::cos(x[i]) : std::sin(x[i]);
        return result;
    }
};
void exponentials(const void *const *in, void *out, int64_t count) {
    in_float((float *)out, count, [](vec x) { return exponential(x); }, (const float *)in[0]);
}

struct Function {
    const char *name;
    Type in, out;
    Kernel kernel;
    bool divides = false; /* by whole numbers, which may not be 0 */
};

constexpr Type F32 = Type::F32, I64 = Type::I64, BOOL = Type::BOOL;

const Function UNARY[] = {
    {"neg", F32, F32, each<float, float, Neg>},
    {"neg", I64, I64, each<whole, whole, Neg>},
    {"abs", F32, F32, each<float, float, Abs>},
    {"abs", I64, I64, each<whole, whole, Abs>},
    {"sign", F32, F32, each<float, float, Sign>},
    {"sign", I64, I64, each<int64_t, int64_t, Sign>},
    {"exp", F32, F32, exponentials},
    {"expm1", F32, F32, each_double<Expm1>},
    {"log", F32, F32, each_double<Log>},
    {"log1p", F32, F32, each_double<Log1p>},
    {"sqrt", F32, F32, each<float, float, Sqrt>},
    {"rsqrt", F32, F32, each<float, float, Rsqrt>},
    {"reciprocal", F32, F32, each<float, float, Reciprocal>},
    {"sin", F32, F32, each_double<Sine<0>>},
    {"cos", F32, F32, each_double<Sine<1>>},
    {"erf", F32, F32, each_double<Erf>},
    {"floor", F32, F32, each<float, float, Floor>},
    {"ceil", F32, F32, each<float, float, Ceil>},
    {"round", F32, F32, each<float, float, Round>},
    {"isnan", F32, BOOL, each<float, uint8_t, IsNan>},
    {"not", BOOL, BOOL, each<uint8_t, uint8_t, Not>},
};

/* ---- two inputs ---- */

struct Add {
    template <class T> static T of(T a, T b) { return a + b; }
};
struct Sub {
    template <class T> static T of(T a, T b) { return a - b; }
};
struct Mul {
    template <class T> static T of(T a, T b) { return a * b; }
};
struct Div {
    static float of(float a, float b) { return a / b; }
    static float of(int64_t a, int64_t b) { return (float)a / (float)b; }
};
struct Max { /* NaN if one is */
    template <class T> static T of(T a, T b) { return a > b || a != a ? a : b; }
};
struct Min {
    template <class T> static T of(T a, T b) { return a < b || a != a ? a : b; }
};
struct Eq {
    template <class T> static uint8_t of(T a, T b) { return a == b; }
};
struct Ne {
    template <class T> static uint8_t of(T a, T b) { return a != b; }
};
struct Lt {
    template <class T> static uint8_t of(T a, T b) { return a < b; }
};
struct Le {
    template <class T> static uint8_t of(T a, T b) { return a <= b; }
};
struct Gt {
    template <class T> static uint8_t of(T a, T b) { return a > b; }
};
struct Ge {
    template <class T> static uint8_t of(T a, T b) { return a >= b; }
};
struct And {
    static uint8_t of(uint8_t a, uint8_t b) { return a & b; }
};
struct Or {
    static uint8_t of(uint8_t a, uint8_t b) { return a | b; }
};
struct Xor {
    static uint8_t of(uint8_t a, uint8_t b) { return a ^ b; }
};

/* Whole numbers rounded down as Python does. What a division by 0 gives does not matter: the run fails. */
struct FloorDiv {
    static int64_t of(int64_t a, int64_t b) {
        if (b == 0) return 0;
        if (b == -1) return (int64_t)(0 - (whole)a); /* the smallest number has no positive counterpart */
        return a / b - (a % b != 0 && (a % b < 0) != (b < 0));
    }
};
struct Mod {
    static int64_t of(int64_t a, int64_t b) {
        if (b == 0 || b == -1) return 0;
        int64_t rest = a % b;
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
    }
};
struct Power {
    static whole of(whole a, whole b) {
        if ((int64_t)b < 0) return a == 1 ? 1 : a == (whole)-1 ? (b & 1 ? a : 1) : 0;
        whole power = 1;
        for (; b; b >>= 1, a *= a)
            if (b & 1) power *= a;
        return power;
    }
};

/* A function of pairs of floats: Fast::of in vectors of doubles, if Fast::fits says that it is exact there for all
 * numbers of a vector, otherwise Exact::of one by one. */
template <class Fast, class Exact> void each_pair_in_double(const void *const *in, void *out, int64_t count) {
    in_steps<HALF>(
        (float *)out, count,
        [](float *to, const float *p, const float *q) {
            dvec a = load_wide(p), b = load_wide(q);
            if (any(Fast::unfit(a, b)))
                for (int i = 0; i < HALF; i++) to[i] = Exact::of(p[i], q[i]);
            else
                store_narrow(to, Fast::of(a, b));
        },
        (const float *)in[0], (const float *)in[1]);
}

/* PyTorch's steps for floats, which are Python's. */
struct ExactFloorDiv {
    static float of(float a, float b) {
        if (b == 0) return a / b;
        float rest = std::fmod(a, b), quotient = (a - rest) / b;
        if (rest != 0 && (b < 0) != (rest < 0)) quotient -= 1;
        if (quotient == 0) return std::copysign(0.0f, a / b);
        float down = std::floor(quotient);
        return quotient - down > 0.5f ? down + 1 : down;
    }
};
struct ExactMod {
    static float of(float a, float b) {
        float rest = std::fmod(a, b);
        return rest != 0 && (b < 0) != (rest < 0) ? rest + b : rest;
    }
};
/* a / b rounded down, for quotients of less than 2²², where it is what PyTorch's steps give: no quotient of floats is
 * so near to a whole number that rounding it to a double reaches that. */
inline dvec quotient_down(dvec a, dvec b) {
    constexpr double ROUND = 0x1.8p52;
    dvec quotient = a / b, near = (quotient + ROUND) - ROUND;
    return near - (near > quotient ? wide(1) : dvec{});
}
inline lvec quotient_unfit(dvec a, dvec b) { /* also 0 / b, whose sign matters, and NaN */
    dvec quotient = a / b;
    quotient = quotient < 0.0 ? -quotient : quotient;
    return ~((quotient < 0x1p22) & (quotient > 0.0) & (b - b == 0.0));
}
struct FastFloorDiv {
    static lvec unfit(dvec a, dvec b) { return quotient_unfit(a, b); }
    static dvec of(dvec a, dvec b) { return quotient_down(a, b); }
};
struct FastMod {
    static lvec unfit(dvec a, dvec b) { return quotient_unfit(a, b); }
    static dvec of(dvec a, dvec b) {
        dvec down = quotient_down(a, b);
        /* The remainder of the quotient rounded towards 0 is exact; as PyTorch does, only then comes b. */
        dvec toward = down < 0.0 ? down + 1.0 : down;
        dvec exact = a - down * b, rest = a - toward * b;
        rest = down < 0.0 ? rest + b : rest;
        return exact == 0.0 ? a * 0.0 : rest;
    }
};

struct ExactPower {
    static float of(float a, float b) { return (float)std::pow((double)a, (double)b); }
};
/* exp(b · log|a|) for finite numbers and a ≠ 0; negative numbers have powers with whole exponents. */
struct FastPower {
    static lvec unfit(dvec a, dvec b) { return ~((a != 0.0) & (a - a == 0.0) & (b < 0x1p40) & (b > -0x1p40)); }
    static dvec of(dvec a, dvec b) {
        constexpr double ROUND = 0x1.8p52;
        dvec size = a < 0.0 ? -a : a, half = b * 0.5;
        dvec power = exponential(b * logarithm(size, size - 1.0));
        power = b == 2.0 ? a * a : power;
        dvec odd = (half + ROUND) - ROUND == half ? power : -power; /* of whole exponents */
        odd = (b + ROUND) - ROUND == b ? odd : wide(NAN);
        return a < 0.0 ? odd : power;
    }
};

const Function BINARY[] = {
    {"add", F32, F32, each_pair<float, float, Add>},
    {"sub", F32, F32, each_pair<float, float, Sub>},
    {"mul", F32, F32, each_pair<float, float, Mul>},
    {"div", F32, F32, each_pair<float, float, Div>},
    {"floor_div", F32, F32, each_pair_in_double<FastFloorDiv, ExactFloorDiv>},
    {"mod", F32, F32, each_pair_in_double<FastMod, ExactMod>},
    {"pow", F32, F32, each_pair_in_double<FastPower, ExactPower>},
    {"max", F32, F32, each_pair<float, float, Max>},
    {"min", F32, F32, each_pair<float, float, Min>},
    {"eq", F32, BOOL, each_pair<float, uint8_t, Eq>},
    {"ne", F32, BOOL, each_pair<float, uint8_t, Ne>},
    {"lt", F32, BOOL, each_pair<float, uint8_t, Lt>},
    {"le", F32, BOOL, each_pair<float, uint8_t, Le>},
    {"gt", F32, BOOL, each_pair<float, uint8_t, Gt>},
    {"ge", F32, BOOL, each_pair<float, uint8_t, Ge>},
    {"add", I64, I64, each_pair<whole, whole, Add>},
    {"sub", I64, I64, each_pair<whole, whole, Sub>},
    {"mul", I64, I64, each_pair<whole, whole, Mul>},
    {"div", I64, F32, each_pair<int64_t, float, Div>},
    {"floor_div", I64, I64, each_pair<int64_t, int64_t, FloorDiv>, true},
    {"mod", I64, I64, each_pair<int64_t, int64_t, Mod>, true},
    {"pow", I64, I64, each_pair<whole, whole, Power>},
    {"max", I64, I64, each_pair<int64_t, int64_t, Max>},
    {"min", I64, I64, each_pair<int64_t, int64_t, Min>},
    {"eq", I64, BOOL, each_pair<int64_t, uint8_t, Eq>},
    {"ne", I64, BOOL, each_pair<int64_t, uint8_t, Ne>},
    {"lt", I64, BOOL, each_pair<int64_t, uint8_t, Lt>},
    {"le", I64, BOOL, each_pair<int64_t, uint8_t, Le>},
    {"gt", I64, BOOL, each_pair<int64_t, uint8_t, Gt>},
    {"ge", I64, BOOL, each_pair<int64_t, uint8_t, Ge>},
    {"and", BOOL, BOOL, each_pair<uint8_t, uint8_t, And>},
    {"or", BOOL, BOOL, each_pair<uint8_t, uint8_t, Or>},
    {"xor", BOOL, BOOL, each_pair<uint8_t, uint8_t, Xor>},
    {"max", BOOL, BOOL, each_pair<uint8_t, uint8_t, Or>},
    {"min", BOOL, BOOL, each_pair<uint8_t, uint8_t, And>},
    {"add", BOOL, BOOL, each_pair<uint8_t, uint8_t, Or>},
    {"mul", BOOL, BOOL, each_pair<uint8_t, uint8_t, And>},
    {"eq", BOOL, BOOL, each_pair<uint8_t, uint8_t, Eq>},
    {"ne", BOOL, BOOL, each_pair<uint8_t, uint8_t, Ne>},
    {"lt", BOOL, BOOL, each_pair<uint8_t, uint8_t, Lt>},
    {"le", BOOL, BOOL, each_pair<uint8_t, uint8_t, Le>},
    {"gt", BOOL, BOOL, each_pair<uint8_t, uint8_t, Gt>},
    {"ge", BOOL, BOOL, each_pair<uint8_t, uint8_t, Ge>},
};

/* The function that the node names, for this type of its inputs. */
template <size_t N> const Function &function_of(const Node &node, Type type, const Function (&functions)[N]) {
    const std::string &name = node.text("function");
    bool known = false;
    for (auto &function : functions) {
        if (name != function.name) continue;
        if (function.in == type) return function;
        known = true;
    }
    if (known) node.refuse("its function " + name + " is not for " + name_of(type));
    node.refuse("it has no function \"" + name.substr(0, 40) + "\"");
}

/* ---- operations ---- */

/* Compute the output in blocks, from up to three inputs that are broadcast, and apply the activation to each block. */
void compute(Kernel kernel, const std::vector<const Array *> &inputs, const Array &out, Operations &operations,
             const fggp_activation &activation = {FGGP_IDENTITY, 0, 0, 0}) {
    Broadcast broadcast(out.type.shape, inputs);
    int64_t bytes = bytes_of(out.type.type);
    char *to = (char *)out.data;
    Activation after(activation);
    auto work = [=](Range range, const Call &, float *scratch) {
        Broadcast::Reader reader(broadcast, scratch);
        for (int64_t block = range.begin; block < range.end; block++) {
            reader.read(block);
            char *here = to + reader.first * bytes;
            kernel(reader.in, here, reader.count);
            activate(after, (float *)here, reader.count);
        }
    };
    operations.push_back(loop(broadcast.blocks(), broadcast.block_size(), broadcast.scratch(), work));
}

/* Fails the run if a divisor is 0. */
void refuse_zeros(const Node &node, const Array &divisor, Operations &operations) {
    std::string place = node.name.empty() ? node.op : node.name + " (" + node.op + ")";
    std::string why = place + ": a whole number is divided by ";
    const int64_t *numbers = divisor.integers();
    operations.push_back(loop(divisor.type.count(), 1, [=](Range range, const Call &call, float *) {
        int64_t zeros = 0;
        for (int64_t i = range.begin; i < range.end; i++) zeros += numbers[i] == 0;
        if (zeros) call.failure->report(why, 0);
    }));
}

FGGP_ONCE std::vector<TensorType> infer_unary(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    return {{function_of(node, inputs[0]->type, UNARY).out, inputs[0]->shape}};
}
FGGP_ONCE void make_unary(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                          Operations &operations) {
    compute(function_of(node, inputs[0]->type.type, UNARY).kernel, inputs, out[0], operations);
}

FGGP_ONCE std::vector<TensorType> infer_binary(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 2, 2);
    if (inputs[0]->type != inputs[1]->type)
        node.refuse("it reads two tensors of one type, not " + text_of(*inputs[0]) + " and " + text_of(*inputs[1]));
    Type out = function_of(node, inputs[0]->type, BINARY).out;
    return {{out, broadcast_shape(node, {&inputs[0]->shape, &inputs[1]->shape})}};
}
FGGP_ONCE void make_binary(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                           Operations &operations) {
    const Function &function = function_of(node, inputs[0]->type.type, BINARY);
    if (function.divides && out[0].type.count()) refuse_zeros(node, *inputs[1], operations);
    compute(function.kernel, inputs, out[0], operations);
}

template <class T> void choose(const void *const *in, void *out, int64_t count) {
    in_steps<STEP>(
        (T *)out, count,
        [](T *__restrict to, const uint8_t *__restrict condition, const T *__restrict a, const T *__restrict b) {
            for (int i = 0; i < STEP; i++) to[i] = condition[i] ? a[i] : b[i];
        },
        (const uint8_t *)in[0], (const T *)in[1], (const T *)in[2]);
}
FGGP_ONCE std::vector<TensorType> infer_where(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 3, 3);
    check_type(node, *inputs[0], BOOL, "its condition");
    if (inputs[1]->type != inputs[2]->type)
        node.refuse("it reads two tensors of one type, not " + text_of(*inputs[1]) + " and " + text_of(*inputs[2]));
    return {{inputs[1]->type, broadcast_shape(node, {&inputs[0]->shape, &inputs[1]->shape, &inputs[2]->shape})}};
}
FGGP_ONCE void make_where(const Node &, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                          Operations &operations) {
    Type type = out[0].type.type;
    Kernel kernel = type == F32 ? choose<int32_t> : type == I64 ? choose<int64_t> : choose<uint8_t>;
    compute(kernel, inputs, out[0], operations);
}

FGGP_ONCE std::vector<TensorType> infer_activate(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    check_type(node, *inputs[0], F32, "its input");
    if (!node.has("activation")) node.refuse("it has no \"activation\"");
    node.activation();
    return {*inputs[0]};
}
template <class T> void copy(const void *const *in, void *out, int64_t count) { memcpy(out, in[0], count * sizeof(T)); }
FGGP_ONCE void make_activate(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                             Operations &operations) {
    compute(copy<float>, inputs, out[0], operations, node.activation());
}

FGGP_ONCE std::vector<TensorType> infer_add(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 2, 2);
    check_type(node, *inputs[0], F32, "its input");
    check_floats(node, inputs[1], inputs[0]->shape, "its second input");
    node.activation();
    return {*inputs[0]};
}
FGGP_ONCE void make_add(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                        Operations &operations) {
    compute(each_pair<float, float, Add>, inputs, out[0], operations, node.activation());
}

FGGP_ONCE std::vector<TensorType> infer_gate(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 2, 2);
    check_type(node, *inputs[0], F32, "its input");
    const Shape &shape = inputs[0]->shape;
    if (shape.size() != 4) node.refuse("it reads a tensor of 4 dimensions, not " + text_of(*inputs[0]));
    check_floats(node, inputs[1], {shape[0], shape[1], 1, 1}, "its gate");
    node.activation();
    return {*inputs[0]};
}
FGGP_ONCE void make_gate(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    compute(each_pair<float, float, Mul>, inputs, out[0], operations, node.activation());
}

/* x · scale + shift for each channel. */
void scale_and_shift(const void *const *in, void *out, int64_t count) {
    in_float((float *)out, count, multiply_add, (const float *)in[0], (const float *)in[1], (const float *)in[2]);
}
FGGP_ONCE std::vector<TensorType> infer_affine(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 3);
    check_type(node, *inputs[0], F32, "its input");
    const Shape &shape = inputs[0]->shape;
    check_rank(node, *inputs[0], 2, "its input");
    check_floats(node, optional(inputs, 1), {shape[1]}, "its scale");
    check_floats(node, optional(inputs, 2), {shape[1]}, "its shift");
    node.activation();
    return {*inputs[0]};
}
FGGP_ONCE void make_affine(const Node &node, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                           Operations &operations) {
    const Shape &shape = out[0].type.shape;
    Array channels[2]; /* scale and shift, with a dimension for each that follows the channels */
    std::vector<const Array *> read = {inputs[0]};
    for (int i = 0; i < 2; i++) {
        const Array *given = optional(inputs, i + 1);
        if (!given) continue;
        channels[i] = *given;
        channels[i].type.shape.resize(shape.size() - 1, 1);
        read.push_back(&channels[i]);
    }
    Kernel kernel = read.size() == 3 ? scale_and_shift
                    : read.size() == 1    ? copy<float>
                    : optional(inputs, 1) ? each_pair<float, float, Mul>
                                          : each_pair<float, float, Add>;
    compute(kernel, read, out[0], operations, node.activation());
}

/* What no whole number is near to becomes the smallest one, as the processor does. */
struct Truncate {
    static int64_t of(float x) { return x >= -0x1p63f && x < 0x1p63f ? (int64_t)x : INT64_MIN; }
};
struct ToFloat {
    template <class T> static float of(T x) { return (float)x; }
};
struct ToWhole {
    template <class T> static int64_t of(T x) { return (int64_t)x; }
};
struct NotZero {
    template <class T> static uint8_t of(T x) { return x != 0; }
};
FGGP_ONCE std::vector<TensorType> infer_cast(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    return {{type_named(node.text("type")), inputs[0]->shape}};
}
FGGP_ONCE void make_cast(const Node &, const InputArrays &inputs, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    static const Kernel KERNELS[3][3] = { /* from, to, in the order of Type */
        {copy<float>, each<float, int64_t, Truncate>, each<float, uint8_t, NotZero>},
        {each<int64_t, float, ToFloat>, copy<int64_t>, each<int64_t, uint8_t, NotZero>},
        {each<uint8_t, float, ToFloat>, each<uint8_t, int64_t, ToWhole>, copy<uint8_t>}};
    compute(KERNELS[(int)inputs[0]->type.type][(int)out[0].type.type], inputs, out[0], operations);
}

/* ---- no input ---- */

template <class T> void make_fill(const Array &out, T value, Operations &operations) {
    operations.push_back(loop(out.type.count(), 1, [to = (T *)out.data, value](Range range, const Call &, float *) {
        std::fill(to + range.begin, to + range.end, value);
    }));
}
int64_t whole_value(const Node &node, const char *key) {
    const json::Value *value = node.attributes.find(key);
    if (!value || value->kind != json::Value::INTEGER) node.refuse(std::string("\"") + key + "\" is no whole number");
    return value->integer;
}
FGGP_ONCE std::vector<TensorType> infer_fill(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 0, 0);
    Type type = type_named(node.text("type"));
    if (type == F32) node.number("value");
    else if (type == I64) whole_value(node, "value");
    else if (!(node.has("value") && node.attributes.find("value")->kind == json::Value::FLAG)) {
        int64_t value = whole_value(node, "value");
        if (value != 0 && value != 1)
            node.refuse("\"value\" is " + std::to_string(value) + "; a BOOL is true or false");
    }
    return {{type, node.sizes("shape", sizes)}};
}
FGGP_ONCE void make_fill(const Node &node, const InputArrays &, const std::vector<Array> &out, const Sizes &,
                         Operations &operations) {
    if (out[0].type.type == F32) return make_fill(out[0], (float)node.number("value"), operations);
    if (out[0].type.type == I64) return make_fill(out[0], node.integer("value"), operations);
    const json::Value &value = *node.attributes.find("value");
    make_fill(out[0], (uint8_t)(value.kind == json::Value::FLAG ? value.flag : value.integer != 0), operations);
}

FGGP_ONCE std::vector<TensorType> infer_arange(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 0, 0);
    Type type = type_named(node.text("type"));
    if (type == BOOL) node.refuse("its type is F32 or I64, not BOOL");
    int64_t start = node.size("start", sizes), stop = node.size("stop", sizes), step = node.size("step", sizes), length;
    if (step == 0) node.refuse("\"step\" is 0");
    if (__builtin_sub_overflow(stop, start, &length) || length == INT64_MIN || step == INT64_MIN)
        node.refuse("its numbers from " + std::to_string(start) + " to " + std::to_string(stop) + " are too many");
    if (step < 0) length = -length, step = -step;
    return {{type, {length <= 0 ? 0 : (length - 1) / step + 1}}};
}
template <class T> void make_arange(T *to, int64_t count, int64_t start, int64_t step, Operations &operations) {
    operations.push_back(loop(count, 1, [=](Range range, const Call &, float *) {
        for (int64_t i = range.begin; i < range.end; i++) to[i] = (T)(start + i * step);
    }));
}
FGGP_ONCE void make_arange(const Node &node, const InputArrays &, const std::vector<Array> &out, const Sizes &sizes,
                           Operations &operations) {
    int64_t start = node.size("start", sizes), step = node.size("step", sizes), count = out[0].type.count();
    Array array = out[0];
    if (array.type.type == F32) make_arange(array.floats(), count, start, step, operations);
    else make_arange(array.integers(), count, start, step, operations);
}

} // namespace

const std::vector<Operator> ELEMENTWISE_OPERATORS = {
    {"unary", infer_unary, make_unary},    {"binary", infer_binary, make_binary}, {"where", infer_where, make_where},
    {"activate", infer_activate, make_activate}, {"add", infer_add, make_add}, {"gate", infer_gate, make_gate},
    {"affine", infer_affine, make_affine}, {"cast", infer_cast, make_cast},       {"fill", infer_fill, make_fill},
    {"arange", infer_arange, make_arange},
};
} // namespace fggp
