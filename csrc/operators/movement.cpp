/* Operators that move elements, or only look at them in another shape. */
#include <algorithm>
#include <cmath>
#include <cstring>

#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"
#include "vectors.h"

namespace fggp {
namespace {

/* Calls work with a zero of the unsigned integer that is as large as an element. */
template <class Work> void with_element(Type type, const Work &work) {
    if (type == Type::F32) work(uint32_t());
    else if (type == Type::I64) work(uint64_t());
    else work(uint8_t());
}

template <class T> void copy(T *to, const T *from, int64_t count) {
    if (count >= 8)
        memcpy(to, from, (size_t)count * sizeof(T));
    else
        for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

/* How many elements of a tensor lie from one to the next along each dimension. */
std::vector<int64_t> strides_of(const Shape &shape) {
    std::vector<int64_t> strides(shape.size());
    int64_t stride = 1;
    for (size_t d = shape.size(); d-- > 0; stride *= shape[d]) strides[d] = stride;
    return strides;
}

/* ---- Operators that arrange each dimension for itself. */

/* A part of a dimension of the output: `count` elements, which are begin, begin + step, … of the input's. */
struct Piece {
    int64_t count, begin, step;
    bool fill = false; /* they have the fill value instead */
};
/* A dimension: its size in the input, and the pieces of the output one after the other. */
struct Axis {
    int64_t size;
    std::vector<Piece> pieces;
    int64_t count() const {
        int64_t all = 0;
        for (auto &piece : pieces) all += piece.count;
        return all;
    }
    bool whole() const {
        return pieces.size() == 1 && pieces[0].step == 1 && !pieces[0].fill && pieces[0].count == size;
    }
    bool repeats() const { return size == 1 && pieces.size() == 1 && pieces[0].step == 0; }
};
typedef std::vector<Axis> Axes;

Axis whole_axis(int64_t size) { return {size, {{size, 0, 1}}}; }
Axes whole_axes(const Shape &shape) {
    Axes axes;
    for (int64_t size : shape) axes.push_back(whole_axis(size));
    return axes;
}
Shape shape_of(const Axes &axes) {
    Shape shape;
    for (auto &axis : axes) shape.push_back(axis.count());
    return shape;
}

/* As few dimensions as give the same order of elements, and at least one. */
FGGP_ONCE
Axes merged(const Axes &axes) {
    Axes all;
    for (Axis axis : axes) {
        std::vector<Piece> pieces;
        for (Piece piece : axis.pieces) {
            if (piece.count == 1) piece.step = 1;
            if (piece.count) pieces.push_back(piece);
        }
        axis.pieces = pieces;
        if (axis.whole() && axis.size == 1) continue;
        bool runs = !all.empty(); /* whether each piece of the last dimension is a run of the input */
        if (runs)
            for (auto &piece : all.back().pieces) runs = runs && (piece.step == 1 || piece.fill);
        if (axis.whole() && runs) {
            Axis &last = all.back();
            last.size *= axis.size;
            for (auto &piece : last.pieces) piece.count *= axis.size, piece.begin *= axis.size;
        } else if (axis.repeats() && !all.empty() && all.back().repeats())
            all.back().pieces[0].count *= axis.pieces[0].count;
        else
            all.push_back(axis);
    }
    if (all.empty()) all.push_back(whole_axis(1));
    return all;
}

template <class T> class Arrangement {
  public:
    Arrangement(const Axes &unmerged, const void *from, void *to, T value)
        : axes(merged(unmerged)), from((const T *)from), to((T *)to), value(value) {
        int64_t stride = 1;
        strides.resize(axes.size());
        for (size_t d = axes.size(); d-- > 0; stride *= axes[d].size) strides[d] = stride;
        width = axes.back().count();
    }

    /* Compute these elements of the output. */
    void operator()(const Range &range, const Call &, float *) const {
        Places places(*this, range.begin / width);
        for (int64_t i = range.begin; i < range.end; places.next()) {
            int64_t column = i % width, count = std::min(width - column, range.end - i);
            if (places.filled)
                std::fill_n(to + i, count, value);
            else
                row(from + places.offset, to + i, column, count);
            i += count;
        }
    }

  private:
    /* Part of a row: `count` elements from the column on. */
    void row(const T *from, T *to, int64_t column, int64_t count) const {
        for (auto &piece : axes.back().pieces) {
            if (!count) break;
            if (column >= piece.count) {
                column -= piece.count;
                continue;
            }
            int64_t part = std::min(piece.count - column, count), step = piece.step;
            const T *first = from + piece.begin + (piece.fill ? 0 : column * step);
            if (piece.fill) std::fill_n(to, part, value);
            else if (step == 1) copy(to, first, part);
            else if (step == 0) std::fill_n(to, part, *first);
            else if (step == -1)
                for (int64_t k = 0; k < part; k++) to[k] = first[-k];
            else if (step == 2)
                for (int64_t k = 0; k < part; k++) to[k] = first[2 * k];
            else
                for (int64_t k = 0; k < part; k++) to[k] = first[step * k];
            to += part, count -= part, column = 0;
        }
    }

    /* Walks through the rows: the elements along all dimensions but the last. */
    struct Places {
        const Arrangement &arrangement;
        int64_t offset = 0; /* of the row in the input */
        int filled = 0;     /* how many dimensions are in a piece with the fill value */
        struct Place {
            size_t piece;
            int64_t index; /* in the piece */
        };
        std::vector<Place> places;

        Places(const Arrangement &arrangement, int64_t row)
            : arrangement(arrangement), places(arrangement.axes.size() - 1) {
            for (size_t d = places.size(); d-- > 0;) {
                int64_t count = arrangement.axes[d].count(), index = row % count;
                row /= count;
                auto &pieces = arrangement.axes[d].pieces;
                size_t piece = 0;
                while (index >= pieces[piece].count) index -= pieces[piece++].count;
                places[d] = {piece, index};
                enter(d, 1);
            }
        }
        /* Count where dimension d is, or stop counting it. */
        void enter(size_t d, int sign) {
            const Piece &piece = arrangement.axes[d].pieces[places[d].piece];
            if (piece.fill) filled += sign;
            else offset += sign * (piece.begin + places[d].index * piece.step) * arrangement.strides[d];
        }
        void next() {
            for (size_t d = places.size(); d-- > 0;) {
                auto &pieces = arrangement.axes[d].pieces;
                Place &place = places[d];
                enter(d, -1);
                bool over = false;
                if (++place.index == pieces[place.piece].count) {
                    place.index = 0;
                    over = ++place.piece == pieces.size();
                    if (over) place.piece = 0;
                }
                enter(d, 1);
                if (!over) return;
            }
        }
    };

    Axes axes;
    std::vector<int64_t> strides; /* of the input */
    int64_t width;                /* of the output's last dimension */
    const T *from;
    T *to;
    T value;
};

FGGP_ONCE
void arrange(const Axes &axes, const Array &in, const Array &out, double value, Operations &operations) {
    int64_t count = out.type.count();
    if (!count) return;
    with_element(in.type.type, [&](auto zero) {
        using T = decltype(zero);
        T fill;
        if constexpr (sizeof(T) == sizeof(float)) {
            float number = (float)value;
            memcpy(&fill, &number, sizeof fill);
        } else
            fill = (T)(int64_t)value;
        operations.push_back(loop(count, 1, Arrangement<T>(axes, in.data, out.data, fill)));
    });
}

/* An operator whose function `axes` says how each dimension is arranged. */
typedef Axes (*Arranging)(const Node &, const TensorType &, const Sizes &);
template <Arranging axes>
FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_arranged(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    return {{inputs[0]->type, shape_of(axes(node, *inputs[0], sizes))}};
}
template <Arranging axes>
FGGP_ONCE
FGGP_ONCE void make_arranged(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                             const Sizes &sizes, Operations &operations) {
    arrange(axes(node, inputs[0]->type, sizes), *inputs[0], outputs[0],
            node.op == "pad" ? node.number("value", 0) : 0, operations);
}

FGGP_ONCE
Axes expanded(const Node &node, const TensorType &in, const Sizes &sizes) {
    Shape shape = node.sizes("shape", sizes);
    int added = (int)shape.size() - in.rank();
    bool fits = added >= 0;
    for (int d = 0; fits && d < (int)shape.size(); d++)
        fits = shape[d] >= 0 && (d < added || in.shape[d - added] == 1 || in.shape[d - added] == shape[d]);
    if (!fits) node.refuse(text_of(in) + " cannot be expanded to " + text_of(shape));
    Axes axes;
    for (int d = 0; d < (int)shape.size(); d++) {
        int64_t size = d < added ? 1 : in.shape[d - added];
        axes.push_back({size, {{shape[d], 0, size == shape[d] ? 1 : 0}}});
    }
    return axes;
}

FGGP_ONCE
Axes sliced(const Node &node, const TensorType &in, const Sizes &sizes) {
    Axes axes = whole_axes(in.shape);
    Axis &axis = axes[node.dimension("dim", in.rank())];
    auto clamped = [&](const char *key) { /* a negative number counts from the end, as in Python */
        int64_t index = node.size(key, sizes);
        if (index < 0) index += axis.size;
        return std::max<int64_t>(0, std::min(index, axis.size));
    };
    int64_t start = clamped("start"), stop = clamped("stop"), step = node.integer("step");
    if (step < 1) node.refuse("\"step\" is " + std::to_string(step) + ", and must be 1 or more");
    int64_t count = stop > start ? (stop - start - 1) / step + 1 : 0;
    axis.pieces = {{count, start, count == 1 ? 1 : step}};
    return axes;
}

FGGP_ONCE
Axes flipped(const Node &node, const TensorType &in, const Sizes &) {
    Axes axes = whole_axes(in.shape);
    for (int d : node.dimensions("dims", in.rank())) axes[d].pieces = {{in.shape[d], in.shape[d] - 1, -1}};
    return axes;
}

FGGP_ONCE
Axes rolled(const Node &node, const TensorType &in, const Sizes &) {
    Axes axes = whole_axes(in.shape);
    auto dims = node.dimensions("dims", in.rank());
    auto shifts = node.integers("shifts", dims.size());
    for (size_t i = 0; i < dims.size(); i++) {
        int64_t size = in.shape[dims[i]];
        if (!size) continue;
        int64_t shift = (shifts[i] % size + size) % size;
        if (shift) axes[dims[i]].pieces = {{shift, size - shift, 1}, {size - shift, 0, 1}};
    }
    return axes;
}

/* A padded dimension. For each mode, what is before and after the elements that are kept of it. */
FGGP_ONCE
Axis padded_axis(const Node &node, const std::string &mode, int64_t size, int64_t before, int64_t after) {
    constexpr int64_t MOST = int64_t(1) << 40;
    auto refuse = [&](const char *why) {
        node.refuse("\"pads\" has " + std::to_string(before) + " and " + std::to_string(after) +
                    " for a dimension of size " + std::to_string(size) +
                    (mode == "constant" ? "" : " and the mode " + mode) + why);
    };
    if (before > MOST || after > MOST || before < -MOST || after < -MOST) refuse(", which is too much");
    int64_t left = std::max<int64_t>(before, 0), right = std::max<int64_t>(after, 0);
    int64_t begin = std::max<int64_t>(-before, 0), end = size - std::max<int64_t>(-after, 0), kept = end - begin;
    if (kept < 0) refuse(", which cut more than there is");
    Piece middle = {kept, begin, 1};
    if (mode == "constant") return {size, {{left, 0, 0, true}, middle, {right, 0, 0, true}}};
    if ((left || right) && !size) refuse(", which has nothing to repeat");
    if (mode == "replicate") return {size, {{left, 0, 0}, middle, {right, size - 1, 0}}};
    if (mode == "reflect") {
        if (left >= size + !left || right >= size + !right) refuse("; they must be smaller than the size");
        return {size, {{left, left, -1}, middle, {right, size - 2, -1}}};
    }
    if (left > kept || right > kept) refuse("; they must not be larger than what is kept");
    return {size, {{left, end - left, 1}, middle, {right, begin, 1}}};
}

FGGP_ONCE
Axes padded(const Node &node, const TensorType &in, const Sizes &sizes) {
    auto pads = node.sizes("pads", sizes);
    std::string mode = node.text("mode", "constant");
    if (mode != "constant" && mode != "reflect" && mode != "replicate" && mode != "circular")
        node.refuse("\"mode\" is \"" + mode.substr(0, 40) + "\", and must be constant, reflect, replicate or circular");
    if (pads.size() != 2 * in.shape.size())
        node.refuse("\"pads\" has " + std::to_string(pads.size()) + " numbers, and " + text_of(in) + " needs " +
                    std::to_string(2 * in.shape.size()));
    double value = node.number("value", 0);
    if (in.type != Type::F32 && !(value == std::floor(value) && std::abs(value) < 0x1p53))
        node.refuse("\"value\" is " + std::to_string(value) + ", and must be a whole number for " + text_of(in));
    if (in.type == Type::BOOL && value != 0 && value != 1)
        node.refuse("\"value\" is " + std::to_string(value) + ", and must be 0 or 1 for " + text_of(in));
    Axes axes;
    for (size_t d = 0; d < in.shape.size(); d++)
        axes.push_back(padded_axis(node, mode, in.shape[d], pads[2 * d], pads[2 * d + 1]));
    return axes;
}

/* ---- permute */

/* Walks through the places of some dimensions, the last of which changes first. */
struct Walk {
    struct Dimension {
        int64_t size, in, out; /* and how far the next element is in the input and the output */
    };
    const std::vector<Dimension> &dimensions;
    std::vector<int64_t> index;
    int64_t in = 0, out = 0;

    Walk(const std::vector<Dimension> &dimensions, int64_t start) : dimensions(dimensions), index(dimensions.size()) {
        for (size_t d = index.size(); d-- > 0; start /= dimensions[d].size) {
            index[d] = start % dimensions[d].size;
            in += index[d] * dimensions[d].in;
            out += index[d] * dimensions[d].out;
        }
    }
    void next() {
        for (size_t d = index.size(); d-- > 0;) {
            in += dimensions[d].in, out += dimensions[d].out;
            if (++index[d] < dimensions[d].size) return;
            index[d] = 0;
            in -= dimensions[d].in * dimensions[d].size, out -= dimensions[d].out * dimensions[d].size;
        }
    }
};

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

FGGP_ONCE
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

FGGP_ONCE
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

/* ---- Operators that put tensors together. */

FGGP_ONCE
void check_any_inputs(const Node &node, const InputTypes &inputs) {
    if (inputs.empty() || std::count(inputs.begin(), inputs.end(), nullptr)) node.refuse("it reads one tensor or more");
}

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_concat(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_any_inputs(node, inputs);
    TensorType out = *inputs[0];
    int dim = node.dimension("dim", out.rank());
    out.shape[dim] = 0;
    for (auto *input : inputs) {
        TensorType other = *input;
        int64_t size = other.rank() == out.rank() ? other.shape[dim] : 0;
        if (other.rank() == out.rank()) other.shape[dim] = out.shape[dim];
        if (other != out)
            node.refuse(text_of(*input) + " does not fit " + text_of(*inputs[0]) + " but in dimension " +
                        std::to_string(dim));
        if (__builtin_add_overflow(out.shape[dim], size, &out.shape[dim])) node.refuse("its output is too large");
    }
    return {out};
}

/* A part of each row of the output: `bytes` from a row of an input, which is row_bytes long. */
struct Part {
    const uint8_t *from;
    int64_t begin, bytes, row_bytes; /* begin: in the output's row */
};

/* Puts parts of rows side by side. */
struct Joining {
    std::vector<Part> parts; /* in ascending order */
    uint8_t *to;
    int64_t row_bytes;

    /* Copy these bytes of the output. */
    void operator()(const Range &range, const Call &, float *) const {
        int64_t row = range.begin / row_bytes, done = range.begin % row_bytes; /* in the row */
        auto behind = [](int64_t place, const Part &part) { return place < part.begin; };
        auto part = std::upper_bound(parts.begin(), parts.end(), done, behind) - 1;
        for (int64_t i = range.begin; i < range.end;) {
            int64_t skipped = done - part->begin, bytes = std::min(part->bytes - skipped, range.end - i);
            memcpy(to + i, part->from + row * part->row_bytes + skipped, (size_t)bytes);
            i += bytes, done += bytes;
            if (++part == parts.end()) part = parts.begin(), row++, done = 0;
        }
    }
};

/* An operation that joins parts with room for all rows of the output, without parts of 0 bytes. */
FGGP_ONCE
void join(std::vector<Part> parts, const Array &out, Operations &operations) {
    int64_t begin = 0;
    for (auto &part : parts) part.begin = begin, begin += part.bytes;
    if (out.type.count())
        operations.push_back(loop(out.type.bytes(), 1, Joining{std::move(parts), (uint8_t *)out.data, begin}));
}

FGGP_ONCE
FGGP_ONCE void make_concat(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                           const Sizes &, Operations &operations) {
    int rank = outputs[0].type.rank(), dim = node.dimension("dim", rank);
    std::vector<Part> parts;
    for (auto *input : inputs) {
        int64_t bytes = product(input->type.shape, dim, rank) * bytes_of(input->type.type);
        if (bytes) parts.push_back({(const uint8_t *)input->data, 0, bytes, bytes});
    }
    join(std::move(parts), outputs[0], operations);
}

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_channels(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_any_inputs(node, inputs);
    TensorType out = *inputs[0];
    if (out.rank() < 2) node.refuse(text_of(out) + " has no channels");
    int64_t channels = 0;
    for (auto *input : inputs) {
        TensorType other = *input;
        if (other.rank() == out.rank()) other.shape[1] = out.shape[1];
        if (other != out) node.refuse(text_of(*input) + " does not fit " + text_of(out) + " but in its channels");
        channels += input->shape[1];
    }
    auto index = node.integers("index");
    for (int64_t channel : index)
        if (channel < 0 || channel >= channels)
            node.refuse("\"index\" has " + std::to_string(channel) + ", and the inputs have " +
                        std::to_string(channels) + " channels");
    out.shape[1] = (int64_t)index.size();
    return {out};
}

FGGP_ONCE
FGGP_ONCE void make_channels(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                             const Sizes &, Operations &operations) {
    std::vector<int64_t> starts = {0}; /* the first channel of each input */
    for (auto *input : inputs) starts.push_back(starts.back() + input->type.shape[1]);
    const TensorType &out = outputs[0].type;
    int64_t plane = product(out.shape, 2, out.rank()) * bytes_of(out.type);
    std::vector<Part> parts;
    int64_t before = -2;
    for (int64_t channel : node.integers("index")) {
        size_t input = std::upper_bound(starts.begin(), starts.end(), channel) - starts.begin() - 1;
        if (channel == before + 1 && channel != starts[input])
            parts.back().bytes += plane; /* consecutive channels are one part */
        else
            parts.push_back({(const uint8_t *)inputs[input]->data + (channel - starts[input]) * plane, 0, plane,
                             inputs[input]->type.shape[1] * plane});
        before = channel;
    }
    join(std::move(parts), outputs[0], operations);
}

/* ---- Operators that read where an index says. */

/* What is said of an index outside of its dimension, before its value. */
FGGP_ONCE
std::string outside(const Node &node, int64_t size, bool negative) {
    return (node.name.empty() ? node.op : node.name + " (" + node.op + ")") + ": the indices must be from " +
           std::to_string(negative ? -size : 0) + " to " + std::to_string(size - 1) + ", and one is ";
}

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_take(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 2, 2);
    check_type(node, *inputs[1], Type::I64, "the index");
    int dim = node.dimension("dim", inputs[0]->rank());
    auto &from = inputs[0]->shape, &index = inputs[1]->shape;
    TensorType out{inputs[0]->type, {from.begin(), from.begin() + dim}};
    out.shape.insert(out.shape.end(), index.begin(), index.end());
    out.shape.insert(out.shape.end(), from.begin() + dim + 1, from.end());
    return {out};
}

FGGP_ONCE
FGGP_ONCE void make_take(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs, const Sizes &,
                         Operations &operations) {
    if (!outputs[0].type.count()) return;
    const TensorType &type = inputs[0]->type;
    int dim = node.dimension("dim", type.rank());
    int64_t size = type.shape[dim], inner = product(type.shape, dim + 1, type.rank());
    int64_t indices = inputs[1]->type.count(), outer = product(type.shape, 0, dim);
    const int64_t *index = inputs[1]->integers();
    std::string why = outside(node, size, true);
    with_element(type.type, [&](auto zero) {
        using T = decltype(zero);
        auto *from = (const T *)inputs[0]->data;
        auto *to = (T *)outputs[0].data;
        operations.push_back(loop(outer * indices, inner, [=](const Range &range, const Call &call, float *) {
            int64_t row = range.begin / indices, i = range.begin % indices;
            for (int64_t piece = range.begin; piece < range.end; piece++) {
                int64_t at = index[i] < 0 ? index[i] + size : index[i];
                if (at < 0 || at >= size) {
                    call.failure->report(why, index[i]);
                    std::fill_n(to + piece * inner, inner, T(0));
                } else
                    copy(to + piece * inner, from + (row * size + at) * inner, inner);
                if (++i == indices) i = 0, row++;
            }
        }));
    });
}

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_gather(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 2, 2);
    check_type(node, *inputs[1], Type::I64, "the index");
    int dim = node.dimension("dim", inputs[0]->rank());
    auto &from = inputs[0]->shape, &index = inputs[1]->shape;
    bool fits = from.size() == index.size();
    for (int d = 0; fits && d < (int)from.size(); d++) fits = d == dim || index[d] <= from[d];
    if (!fits)
        node.refuse("the index is " + text_of(*inputs[1]) + ", which is larger than " + text_of(*inputs[0]) +
                    " in another dimension than " + std::to_string(dim));
    return {{inputs[0]->type, index}};
}

FGGP_ONCE
FGGP_ONCE void make_gather(const Node &node, const InputArrays &inputs, const std::vector<Array> &outputs,
                           const Sizes &, Operations &operations) {
    const TensorType &in = inputs[0]->type, &out = outputs[0].type;
    if (!out.count()) return;
    int dim = node.dimension("dim", in.rank()), last = in.rank() - 1;
    auto in_strides = strides_of(in.shape), out_strides = strides_of(out.shape);
    std::vector<Walk::Dimension> rows;
    for (int d = 0; d < last; d++) rows.push_back({out.shape[d], d == dim ? 0 : in_strides[d], out_strides[d]});
    int64_t size = in.shape[dim], stride = in_strides[dim], step = dim == last ? 0 : 1, columns = out.shape[last];
    const int64_t *index = inputs[1]->integers();
    std::string why = outside(node, size, false);
    with_element(in.type, [&](auto zero) {
        using T = decltype(zero);
        auto *from = (const T *)inputs[0]->data;
        auto *to = (T *)outputs[0].data;
        auto gather = [=](const Range &range, const Call &call, float *) {
            Walk walk(rows, range.begin);
            for (int64_t row = range.begin; row < range.end; row++, walk.next())
                for (int64_t i = 0; i < columns; i++) {
                    int64_t at = index[walk.out + i];
                    if (at < 0 || at >= size) {
                        call.failure->report(why, at);
                        to[walk.out + i] = 0;
                    } else
                        to[walk.out + i] = from[walk.in + at * stride + i * step];
                }
        };
        operations.push_back(loop(out.count() / columns, columns, gather));
    });
}

/* ---- Operators that only look at the elements in another shape. */

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_reshape(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    TensorType type{inputs[0]->type, node.sizes("shape", sizes)};
    if (type.count() != inputs[0]->count())
        node.refuse(text_of(*inputs[0]) + " cannot have the shape " + text_of(type.shape));
    return {type};
}

FGGP_ONCE
FGGP_ONCE std::vector<TensorType> infer_flatten(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    const TensorType &in = *inputs[0];
    if (in.rank() != 4) node.refuse(text_of(in) + " does not have 4 dimensions");
    return {{in.type, {in.shape[0], product(in.shape, 1, 4)}}};
}

} // namespace

const std::vector<Operator> MOVEMENT_OPERATORS = {
    {"reshape", infer_reshape, nullptr, true},
    {"flatten", infer_flatten, nullptr, true},
    {"permute", infer_permute, make_permute},
    {"expand", infer_arranged<expanded>, make_arranged<expanded>},
    {"slice", infer_arranged<sliced>, make_arranged<sliced>},
    {"flip", infer_arranged<flipped>, make_arranged<flipped>},
    {"roll", infer_arranged<rolled>, make_arranged<rolled>},
    {"pad", infer_arranged<padded>, make_arranged<padded>},
    {"concat", infer_concat, make_concat},
    {"channels", infer_channels, make_channels},
    {"take", infer_take, make_take},
    {"gather", infer_gather, make_gather},
};
} // namespace fggp
