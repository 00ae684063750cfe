/* Operators that put tensors together, read where an index says, or only look at elements in another shape. */
#include <algorithm>
#include <cstring>

#include "operators/elements.h"
#include "operators/inputs.h"
#include "operators/loop.h"
#include "operators/operator.h"

namespace fggp {
namespace {

/* ---- Operators that put tensors together. */

FGGP_ONCE
void check_any_inputs(const Node &node, const InputTypes &inputs) {
    if (inputs.empty() || std::count(inputs.begin(), inputs.end(), nullptr)) node.refuse("it reads one tensor or more");
}

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

FGGP_ONCE std::vector<TensorType> infer_reshape(const Node &node, const InputTypes &inputs, const Sizes &sizes) {
    check_inputs(node, inputs, 1, 1);
    TensorType type{inputs[0]->type, node.sizes("shape", sizes)};
    if (type.count() != inputs[0]->count())
        node.refuse(text_of(*inputs[0]) + " cannot have the shape " + text_of(type.shape));
    return {type};
}

FGGP_ONCE std::vector<TensorType> infer_flatten(const Node &node, const InputTypes &inputs, const Sizes &) {
    check_inputs(node, inputs, 1, 1);
    const TensorType &in = *inputs[0];
    if (in.rank() != 4) node.refuse(text_of(in) + " does not have 4 dimensions");
    return {{in.type, {in.shape[0], product(in.shape, 1, 4)}}};
}

} // namespace

const std::vector<Operator> MOVEMENT_OPERATORS = {
    {"reshape", infer_reshape, nullptr, true, true},
    {"flatten", infer_flatten, nullptr, true, true},
    {"concat", infer_concat, make_concat, false, true},
    {"channels", infer_channels, make_channels, false, true},
    {"take", infer_take, make_take},
    {"gather", infer_gather, make_gather},
};
} // namespace fggp
