/* Dimensions in another order. */
#include <algorithm>

#include "operators/elements.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "vectors.h"

namespace fggp {
namespace {

template <int... I> vec interleaved(vec a, vec b, int first, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return first ? __builtin_shufflevector(a, b, ((I + LANES) / 2 + I % 2 * LANES)...)
                 : __builtin_shufflevector(a, b, (I / 2 + I % 2 * LANES)...);
#else
    return first ? __builtin_shuffle(a, b, ivec{((I + LANES) / 2 + I % 2 * LANES)...})
                 : __builtin_shuffle(a, b, ivec{(I / 2 + I % 2 * LANES)...});
#endif
}

/* to[i][k] = from[k][i] for a block of LANES × LANES floats, whose rows are from_row and to_row floats apart.
 * Interleaving the first half of the rows with the second one turns the block as a deck of cards is shuffled. */
void transpose_block(float *to, int64_t to_row, const float *from, int64_t from_row) {
    constexpr auto ALL = std::make_integer_sequence<int, LANES>();
    vec rows[LANES], next[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = load(from + i * from_row);
#pragma GCC unroll 4
    for (int done = 1; done < LANES; done *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = interleaved(rows[i], rows[i + LANES / 2], 0, ALL);
            next[2 * i + 1] = interleaved(rows[i], rows[i + LANES / 2], 1, ALL);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(to + i * to_row, rows[i]);
}

/* to[i][k] = from[k][i] for i < rows, k < columns. */
template <class T>
void transpose(T *to, int64_t to_row, const T *from, int64_t from_row, int64_t rows, int64_t columns) {
    int64_t whole_rows = 0, whole_columns = 0;
    if constexpr (sizeof(T) == sizeof(float)) {
        whole_rows = rows - rows % LANES, whole_columns = columns - columns % LANES;
        for (int64_t k = 0; k < whole_columns; k += LANES)
            for (int64_t i = 0; i < whole_rows; i += LANES)
                transpose_block((float *)to + i * to_row + k, to_row, (const float *)from + k * from_row + i, from_row);
    }
    if (columns == 3 && to_row == 3) { /* of colours: a constant number, so that the compiler generates vector code */
        for (int64_t i = 0; i < rows; i++)
            for (int64_t k = 0; k < 3; k++) to[i * 3 + k] = from[k * from_row + i];
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = i < whole_rows ? whole_columns : 0; k < columns; k++)
            to[i * to_row + k] = from[k * from_row + i];
}

/* The rows and columns of a transposition that a piece of work computes. */
constexpr int64_t TILE_ROWS = 64, TILE_COLUMNS = 512;

/* Permuting: rows that stay rows are copied. If the last dimension becomes another one, planes are transposed. */
template <class T> struct Permutation {
    std::vector<Walk::Dimension> outer; /* the last two: the tiles of a transposition, their rows and columns */
    int64_t rows, columns;              /* of a plane of the output; a single row: it is copied */
    int64_t from_row, to_row;
    const T *from;
    T *to;

    int64_t pieces() const {
        int64_t all = 1;
        for (auto &dimension : outer) all *= dimension.size;
        return all;
    }
    void operator()(const Range &range, const Call &, float *) const {
        Walk walk(outer, range.begin);
        for (int64_t i = range.begin; i < range.end; i++, walk.next()) {
            if (rows == 1)
                copy(to + walk.out, from + walk.in, columns);
            else {
                const int64_t *tile = &walk.index.back() - 1;
                transpose(to + walk.out, to_row, from + walk.in, from_row,
                          std::min(TILE_ROWS, rows - tile[0] * TILE_ROWS),
                          std::min(TILE_COLUMNS, columns - tile[1] * TILE_COLUMNS));
            }
        }
    }
};

FGGP_ONCE std::vector<TensorType> infer_permute(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    auto dims = node.dimensions("dims", inputs[0]->rank());
    if (dims.size() != inputs[0]->shape.size())
        node.refuse("\"dims\" has " + std::to_string(dims.size()) + " dimensions, and " + text_of(*inputs[0]) +
                    " has " + std::to_string(inputs[0]->rank()));
    TensorType out{inputs[0]->type, {}};
    for (int d : dims) out.shape.push_back(inputs[0]->shape[d]);
    return {out};
}

FGGP_ONCE void make_permute(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                            const Sizes &, Operations &operations) {
    const Array &in = *inputs[0], &out = outputs[0];
    if (!out.type.count()) return;
    auto in_strides = strides_of(in.type.shape), out_strides = strides_of(out.type.shape);
    auto dims = node.dimensions("dims", in.type.rank());
    std::vector<Walk::Dimension> all; /* the output's, where those that stay side by side are one */
    for (size_t d = 0; d < dims.size(); d++) {
        Walk::Dimension next = {out.type.shape[d], in_strides[dims[d]], out_strides[d]};
        if (next.size == 1) continue;
        if (!all.empty() && all.back().in == next.size * next.in)
            all.back() = {all.back().size * next.size, next.in, next.out};
        else
            all.push_back(next);
    }
    if (all.empty()) all.push_back({1, 1, 1});
    Walk::Dimension last = all.back();
    all.pop_back();
    with_element(in.type.type, [&](auto zero) {
        using T = decltype(zero);
        Permutation<T> permutation{all, 1, last.size, last.in, 1, (const T *)in.data, (T *)out.data};
        if (last.in != 1) {
            auto contiguous = std::find_if(all.begin(), all.end(), [](auto &dimension) { return dimension.in == 1; });
            Walk::Dimension rows = *contiguous;
            all.erase(contiguous);
            permutation.rows = rows.size;
            permutation.to_row = rows.out;
            all.push_back({(rows.size + TILE_ROWS - 1) / TILE_ROWS, TILE_ROWS, TILE_ROWS * rows.out});
            all.push_back({(last.size + TILE_COLUMNS - 1) / TILE_COLUMNS, TILE_COLUMNS * last.in, TILE_COLUMNS});
            permutation.outer = all;
        }
        int64_t pieces = permutation.pieces();
        operations.push_back(loop(pieces, out.type.count() / pieces, permutation));
    });
}

} // namespace

const std::vector<Operator> PERMUTE_OPERATORS = {
    {"permute", infer_permute, make_permute},
};
} // namespace fggp
