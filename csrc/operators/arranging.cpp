/* Operators that arrange each dimension for itself: they cut, repeat, turn, roll and pad. */
#include <algorithm>
#include <cmath>

#include "operators/elements.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"

namespace fggp {
namespace {

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
FGGP_ONCE std::vector<TensorType> infer_arranged(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    return {{inputs[0]->type, shape_of(axes(node, *inputs[0], sizes))}};
}
template <Arranging axes>
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

} // namespace

const std::vector<Operator> ARRANGING_OPERATORS = {
    {"expand", infer_arranged<expanded>, make_arranged<expanded>},
    {"slice", infer_arranged<sliced>, make_arranged<sliced>},
    {"flip", infer_arranged<flipped>, make_arranged<flipped>},
    {"roll", infer_arranged<rolled>, make_arranged<rolled>},
    {"pad", infer_arranged<padded>, make_arranged<padded>},
};
} // namespace fggp
