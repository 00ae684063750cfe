/* Linear layers, matrix products and attention. */
#include <algorithm>
#include <cmath>

#include "operators/gemm_operation.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "runtime/functions.h"

namespace fggp {
namespace {

const float *optional_floats(const InputArrays &in, size_t i) {
    const Array *array = optional(in, i);
    return array ? array->floats() : nullptr;
}

FGGP_ONCE std::vector<TensorType> infer_linear(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 2, 4);
    const TensorType &x = *in[0], &weight = *in[1];
    check_type(node, x, Type::F32, "its input");
    check_type(node, weight, Type::F32, "its weight");
    if (weight.rank() != 2 || x.rank() < 1 || x.shape.back() != weight.shape[1])
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) +
                    ", and they must be […, I] and [O, I]");
    TensorType out = x;
    out.shape.back() = weight.shape[0];
    out.count();
    check_floats(node, optional(in, 2), {weight.shape[0]}, "its bias");
    check_floats(node, optional(in, 3), out.shape, "its residual");
    node.activation();
    return {out};
}

FGGP_ONCE void make_linear(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                           Operations &operations) {
    const Array &x = *in[0], &weight = *in[1];
    if (!out[0].type.count()) return;
    Gemm g;
    g.columns = weight.type.shape[0], g.depth = weight.type.shape[1];
    g.rows = out[0].type.count() / g.columns;
    g.a = {x.floats(), g.depth, 1};
    g.b = {weight.floats(), 1, g.depth};
    g.column_bias = optional_floats(in, 2);
    g.residual = optional_floats(in, 3);
    g.out = (float *)out[0].data;
    g.out_row = g.residual_row = g.columns;
    operations.push_back(new_gemm(g, x.constant, weight.constant, node.activation()));
}

/* Size of dimension `d` as if the tensor had `rank` dimensions, for those before the last two. */
int64_t leading(const TensorType &type, int rank, int d) {
    int own = d - (rank - type.rank());
    return own < 0 ? 1 : type.shape[own];
}

FGGP_ONCE std::vector<TensorType> infer_matmul(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 2, 2);
    const TensorType &a = *in[0], &b = *in[1];
    check_type(node, a, Type::F32, "its first input");
    check_type(node, b, Type::F32, "its second input");
    check_rank(node, a, 2, "its first input");
    check_rank(node, b, 2, "its second input");
    const bool ta = node.flag("transpose_a", false), tb = node.flag("transpose_b", false);
    const int rank = std::max(a.rank(), b.rank());
    bool fits = a.shape[a.rank() - (ta ? 2 : 1)] == b.shape[b.rank() - (tb ? 1 : 2)];
    TensorType out;
    for (int d = 0; d < rank - 2; d++) {
        const int64_t of_a = leading(a, rank, d), of_b = leading(b, rank, d);
        fits = fits && (of_a == of_b || of_a == 1 || of_b == 1);
        out.shape.push_back(of_a == 1 ? of_b : of_a);
    }
    if (!fits)
        node.refuse("its inputs are " + text_of(a) + (ta ? " (transposed)" : "") + " and " + text_of(b) +
                    (tb ? " (transposed)" : "") + ", and they must be […, M, K] and […, K, N]");
    out.shape.push_back(a.shape[a.rank() - (ta ? 1 : 2)]);
    out.shape.push_back(b.shape[b.rank() - (tb ? 2 : 1)]);
    out.count();
    return {out};
}

/* The strides of the leading dimensions `sizes` of a tensor; 0 where it is broadcast. */
std::vector<int64_t> leading_strides(const TensorType &type, const Shape &sizes) {
    std::vector<int64_t> strides(sizes.size());
    const int rank = (int)sizes.size() + 2;
    int64_t stride = type.shape[type.rank() - 1] * type.shape[type.rank() - 2];
    for (int d = rank - 3; d >= 0; d--) {
        const int64_t size = leading(type, rank, d);
        strides[d] = size == 1 ? 0 : stride; /* where the type has no such dimension, too */
        stride *= size;
    }
    return strides;
}

FGGP_ONCE void make_matmul(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                           Operations &operations) {
    const TensorType &a = in[0]->type, &b = in[1]->type, &c = out[0].type;
    if (!c.count()) return;
    const bool ta = node.flag("transpose_a", false), tb = node.flag("transpose_b", false);
    Gemm g;
    g.rows = c.shape[c.rank() - 2], g.columns = c.shape[c.rank() - 1];
    g.depth = a.shape[a.rank() - (ta ? 2 : 1)];
    g.a = {in[0]->floats(), a.shape.back(), 1};
    g.b = {in[1]->floats(), b.shape.back(), 1};
    if (ta) g.a = g.a.transposed();
    if (tb) g.b = g.b.transposed();
    g.out = (float *)out[0].data;
    g.out_row = g.columns;
    Batches all, merged;
    all.sizes.assign(c.shape.begin(), c.shape.end() - 2);
    all.a = leading_strides(a, all.sizes), all.b = leading_strides(b, all.sizes);
    all.out = leading_strides(c, all.sizes);
    /* Dimensions that are like one are merged. Then rows, if b is the same for all. */
    for (size_t d = all.sizes.size(); d-- > 0;) {
        const int64_t size = all.sizes[d];
        if (size == 1) continue;
        if (!merged.sizes.empty()) {
            const int64_t inner = merged.sizes.back();
            if (all.a[d] == merged.a.back() * inner && all.b[d] == merged.b.back() * inner) {
                merged.sizes.back() *= size;
                continue;
            }
        }
        merged.sizes.push_back(size);
        merged.a.push_back(all.a[d]), merged.b.push_back(all.b[d]), merged.out.push_back(all.out[d]);
    }
    if (!merged.sizes.empty() && !ta && merged.b[0] == 0 && merged.a[0] == g.rows * g.depth) {
        g.rows *= merged.sizes[0];
        for (auto *list : {&merged.sizes, &merged.a, &merged.b, &merged.out}) list->erase(list->begin());
    }
    for (auto *list : {&merged.sizes, &merged.a, &merged.b, &merged.out}) std::reverse(list->begin(), list->end());
    auto none = [](const std::vector<int64_t> &strides) {
        return std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; });
    };
    if (none(merged.a)) merged.a.clear();
    if (none(merged.b)) merged.b.clear();
    operations.push_back(new_gemm(g, in[0]->constant, in[1]->constant, {FGGP_IDENTITY, 0, 0, 0}, merged));
}

/* Whether dimension `d` of k or v serves that of q: it is equal or broadcast, or each of its heads serves several. */
bool serves(const TensorType &q, const TensorType &k, int d) {
    const int64_t has = k.shape[d], wanted = q.shape[d];
    return has == wanted || has == 1 || (d == q.rank() - 3 && has > 0 && wanted % has == 0);
}

FGGP_ONCE std::vector<TensorType> infer_attention(const Node &node, const InputTypes &in, const Sizes &) {
    check_inputs(node, in, 3, 4);
    const TensorType &q = *in[0], &k = *in[1], &v = *in[2];
    for (int i = 0; i < 3; i++) {
        check_type(node, *in[i], Type::F32, "one of q, k and v");
        check_rank(node, *in[i], 2, "one of q, k and v");
    }
    const int rank = q.rank();
    bool fits = k.rank() == rank && v.rank() == rank && q.shape[rank - 1] == k.shape[rank - 1] &&
                k.shape[rank - 2] == v.shape[rank - 2];
    for (int d = 0; fits && d < rank - 2; d++) fits = serves(q, k, d) && serves(q, v, d);
    if (!fits)
        node.refuse("q is " + text_of(q) + ", k is " + text_of(k) + " and v is " + text_of(v) +
                    ", and they must be […, L, E], […, S, E] and […, S, F]");
    TensorType out = q;
    out.shape.back() = v.shape.back();
    out.count();
    TensorType scores = q;
    scores.shape.back() = k.shape[rank - 2];
    if (auto *mask = optional(in, 3)) {
        bool broadcast = mask->type != Type::I64 && mask->rank() <= rank;
        for (int d = 0; broadcast && d < mask->rank(); d++) {
            const int64_t size = mask->shape[mask->rank() - 1 - d];
            broadcast = size == 1 || size == scores.shape[rank - 1 - d];
        }
        if (!broadcast)
            node.refuse("its mask is " + text_of(*mask) + ", and must be BOOL or F32 and fit " + text_of(scores.shape));
    }
    node.flag("causal", false);
    node.number("scale", 1);
    return {out};
}

/* Replace a row by its softmax; a row of only -∞ by zeros. After the row, up to a whole vector, there is room. */
void softmax(float *row, int64_t count) {
    const int64_t whole = (count + LANES - 1) / LANES * LANES;
    std::fill(row + count, row + whole, -INFINITY);
    vec most = splat(-INFINITY), sum = {};
    for (int64_t i = 0; i < whole; i += LANES) {
        vec x = load(row + i);
        most = x > most ? x : most;
    }
    float largest = -INFINITY, total = 0;
    for (int k = 0; k < LANES; k++) largest = std::max(largest, most[k]);
    if (largest == -INFINITY) largest = 0;
    for (int64_t i = 0; i < whole; i += LANES) {
        vec e = exponential(load(row + i) - largest); /* NaN, also of ∞ - ∞, is then in the sum */
        store(row + i, e);
        sum += e;
    }
    for (int k = 0; k < LANES; k++) total += sum[k];
    const float inverse = total == 0 ? 0 : 1 / total;
    for (int64_t i = 0; i < whole; i += LANES) store(row + i, load(row + i) * inverse);
}

/* The largest magnitude; NaN if there is one. */
float largest_magnitude(const float *x, int64_t count) {
    ivec most = {};
    auto take = [&](vec v) {
        const ivec magnitude = (ivec)v & 0x7fffffff; /* ordered as integers; infinity and then NaN are the largest */
        most = magnitude > most ? magnitude : most;
    };
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) take(load(x + i));
    for (; i < count; i++) take(splat(x[i]));
    int32_t largest = 0;
    for (int k = 0; k < LANES; k++) largest = std::max(largest, most[k]);
    float result;
    memcpy(&result, &largest, sizeof result);
    return result;
}

constexpr int64_t SCORES = 128 * 1024; /* floats of a block of scores, which should fit the second-level cache */
constexpr int64_t LEAST_ROWS = 56;     /* of a block; with fewer rows, k and v are read too often */
constexpr int64_t CAUSAL_ROWS = 112;   /* the most rows of a block, so that few scores are computed in vain */
constexpr int64_t LEAST_BLOCKS = 16;   /* in all, for the threads */
constexpr int64_t FEW_ROWS = 8;        /* with up to this many rows, packing k and v does not pay */

/* A block of rows of q at a time: their scores with all k, the softmax of these, and its product with v. */
class Attention {
  public:
    Attention(const Node &node, const InputArrays &in, const Array &out) : out((float *)out.data) {
        const TensorType types[3] = {in[0]->type, in[1]->type, in[2]->type};
        const int rank = types[0].rank();
        L = types[0].shape[rank - 2], E = types[0].shape[rank - 1];
        S = types[1].shape[rank - 2], F = types[2].shape[rank - 1];
        causal = node.flag("causal", false);
        scale = (float)node.number("scale", 1 / std::sqrt((double)E));
        sizes.assign(types[0].shape.begin(), types[0].shape.end() - 2);
        for (int64_t size : sizes) heads *= size;
        for (int i = 0; i < 3; i++) {
            data[i] = in[i]->floats();
            strides[i] = leading_strides(types[i], sizes);
            if (rank > 2) repeats[i] = sizes.back() / types[i].shape[rank - 3]; /* no size is 0: nor is the output */
        }
        if (const Array *array = optional(in, 3)) {
            mask = array->data, mask_is_bool = array->type.type == Type::BOOL;
            TensorType type = array->type;
            while (type.rank() < 2) type.shape.insert(type.shape.begin(), 1);
            mask_strides = leading_strides(type, sizes);
            const int64_t rows = type.shape[type.rank() - 2], columns = type.shape[type.rank() - 1];
            mask_row = rows == 1 ? 0 : columns, mask_column = columns == 1 ? 0 : 1;
        }
        row = std::max<int64_t>(1, (S + LANES - 1) / LANES) * LANES;
        int64_t most = std::max(LEAST_ROWS, std::min(SCORES / row, (L * heads + LEAST_BLOCKS - 1) / LEAST_BLOCKS));
        if (causal) most = std::min(most, CAUSAL_ROWS);
        blocks = (L + most - 1) / most;
        rows = (L + blocks - 1) / blocks;
        packs = rows > FEW_ROWS;
        gemm_floats = std::max(gemm_scratch(rows, S, E), gemm_scratch(rows, F, S));
        gemm_floats = (gemm_floats + LANES - 1) / LANES * LANES;
    }

    int64_t pieces() const { return heads * blocks; }
    int64_t work_each() const { return rows * S * (E + F + 8) / 16; }
    int64_t scratch() const {
        return gemm_floats + rows * row + (packs ? packed_floats(E, S) + packed_floats(S, F) : 0) + rows * E;
    }

    void operator()(Range pieces, const Call &, float *scratch) const {
        float *scores = scratch + gemm_floats;
        float *packed_k = scores + rows * row, *packed_v = packed_k + (packs ? packed_floats(E, S) : 0);
        float *scaled = packed_v + (packs ? packed_floats(S, F) : 0);
        int64_t packed_head = -1;
        for (int64_t piece = pieces.begin; piece < pieces.end; piece++) {
            const int64_t head = piece / blocks;
            const Range block(L, piece % blocks, blocks);
            const float *q = part(0, head) + block.begin * E, *k = part(1, head), *v = part(2, head);
            const int64_t count = block.end - block.begin;
            in_float(scaled, count * E, [&](vec x) { return x * scale; }, q);
            const int64_t used = used_keys(block, scaled, k, v);

            Gemm product;
            product.rows = count, product.columns = used, product.depth = E;
            product.a = {scaled, E, 1}, product.b = {k, 1, E};
            product.out = scores, product.out_row = row;
            Gemm result;
            result.rows = count, result.columns = F, result.depth = used;
            result.a = {scores, row, 1}, result.b = {v, F, 1};
            result.out = out + (head * L + block.begin) * F, result.out_row = F;
            if (packs && used == S) {
                if (packed_head != head) {
                    pack_b(product.b, E, S, packed_k);
                    pack_b(result.b, S, F, packed_v);
                    packed_head = head;
                }
                product.packed_b = packed_k, result.packed_b = packed_v;
            }
            multiply(product, scratch);
            for (int64_t i = 0; i < count; i++) {
                if (mask) add_mask(head, block.begin + i, used, scores + i * row);
                if (causal) /* also to NaN, which stays */
                    for (int64_t j = block.begin + i + 1; j < used; j++) scores[i * row + j] -= INFINITY;
                softmax(scores + i * row, used);
            }
            multiply(result, scratch);
        }
    }

  private:
    /* Where the matrix of q, k or v for a head starts; `head` counts through all leading dimensions of q. */
    const float *part(int i, int64_t head) const {
        int64_t offset = 0;
        for (size_t d = sizes.size(); d-- > 0; head /= sizes[d]) {
            const int64_t index = head % sizes[d];
            offset += (d + 1 == sizes.size() ? index / repeats[i] : index) * strides[i][d];
        }
        return data[i] + offset;
    }

    /* Keys that the block depends on. Those after it have a weight of 0 in causal attention. As 0 · ∞ and -∞ + ∞ are
     * NaN, they may only be left out where all scores and values are surely finite. */
    int64_t used_keys(Range block, const float *scaled, const float *k, const float *v) const {
        if (!causal || block.end >= S) return S;
        constexpr float SAFE = 1e37f;
        const float largest_score = largest_magnitude(scaled, (block.end - block.begin) * E) * (float)E *
                                    largest_magnitude(k + block.end * E, (S - block.end) * E);
        const float largest_value = largest_magnitude(v + block.end * F, (S - block.end) * F);
        return largest_score < SAFE && largest_value < INFINITY && (!mask || mask_is_bool) ? block.end : S;
    }

    void add_mask(int64_t head, int64_t query, int64_t count, float *scores) const {
        int64_t offset = query * mask_row;
        for (size_t d = sizes.size(); d-- > 0; head /= sizes[d]) offset += head % sizes[d] * mask_strides[d];
        if (mask_is_bool) {
            const uint8_t *takes_part = (const uint8_t *)mask + offset;
            for (int64_t j = 0; j < count; j++) scores[j] += takes_part[j * mask_column] ? 0.0f : -INFINITY;
        } else if (mask_column)
            in_float(scores, count, [](vec s, vec m) { return s + m; }, scores, (const float *)mask + offset);
        else {
            const float more = ((const float *)mask)[offset];
            in_float(scores, count, [&](vec s) { return s + more; }, scores);
        }
    }

    const float *data[3]; /* q, k, v */
    float *out;
    const void *mask = nullptr;
    bool mask_is_bool = false, causal, packs;
    float scale;
    int64_t L, S, E, F;
    Shape sizes; /* of the leading dimensions */
    std::vector<int64_t> strides[3], mask_strides;
    int64_t repeats[3] = {1, 1, 1}; /* how many heads of q each head serves */
    int64_t mask_row = 0, mask_column = 0;
    int64_t heads = 1, blocks, rows; /* `rows`: the most of a block */
    int64_t row;                     /* floats from one row of scores to the next */
    int64_t gemm_floats;
};

FGGP_ONCE void make_attention(const Node &node, const InputArrays &in, const std::vector<Array> &out, const Sizes &,
                              Operations &operations) {
    if (!out[0].type.count()) return;
    Attention attention(node, in, out[0]);
    operations.push_back(loop(attention.pieces(), attention.work_each(), attention.scratch(), attention));
}

} // namespace

const std::vector<Operator> PRODUCT_OPERATORS = {
    {"linear", infer_linear, make_linear},
    {"matmul", infer_matmul, make_matmul},
    {"attention", infer_attention, make_attention},
};

} // namespace fggp
