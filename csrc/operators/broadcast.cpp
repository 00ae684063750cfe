#include "operators/broadcast.h"

#include <cstring>

namespace fggp {

std::vector<int64_t> row_major(const Shape &shape) {
    std::vector<int64_t> strides(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
        strides[i] = stride;
        stride *= std::max<int64_t>(1, shape[i]); /* a tensor without elements may have any sizes beside the 0 */
        if (stride > (int64_t(1) << 40)) stride = 1;
    }
    return strides;
}

Shape broadcast_shape(const Node &node, const std::vector<const Shape *> &shapes) {
    Shape out;
    for (auto *shape : shapes) out.resize(std::max(out.size(), shape->size()), 1);
    for (auto *shape : shapes) {
        size_t missing = out.size() - shape->size();
        for (size_t i = 0; i < shape->size(); i++) {
            int64_t &size = out[missing + i], other = (*shape)[i];
            if (size == 1) size = other;
            if (other != 1 && other != size) {
                std::string text;
                for (auto *one : shapes)
                    text += (text.empty() ? "" : one == shapes.back() ? " and " : ", ") + text_of(*one);
                node.refuse("the shapes " + text + " cannot be broadcast");
            }
        }
    }
    return out;
}

std::vector<int64_t> broadcast_strides(const Shape &shape, const Shape &out) {
    std::vector<int64_t> strides(out.size()), own = row_major(shape);
    size_t missing = out.size() - shape.size();
    for (size_t i = 0; i < shape.size(); i++) strides[missing + i] = shape[i] == 1 ? 0 : own[i];
    return strides;
}

void Dimensions::simplify() {
    size_t kept = 0;
    for (size_t i = 0; i < sizes.size(); i++) {
        if (sizes[i] == 1) continue;
        bool merge = kept > 0;
        for (auto &stride : strides) merge = merge && stride[kept - 1] == stride[i] * sizes[i];
        if (merge)
            sizes[kept - 1] *= sizes[i];
        else
            sizes[kept++] = sizes[i];
        for (auto &stride : strides) stride[kept - 1] = stride[i];
    }
    bool none = kept == 0;
    sizes.resize(none ? 1 : kept, 1);
    if (none) sizes[0] = 1;
    for (auto &stride : strides) {
        stride.resize(none ? 1 : kept);
        if (none) stride[0] = 1;
    }
}

int64_t Dimensions::offset(int tensor, int64_t index, int count) const {
    int64_t offset = 0;
    for (int i = count - 1; i > 0; i--) {
        offset += index % sizes[i] * strides[tensor][i];
        index /= sizes[i];
    }
    return count > 0 ? offset + index * strides[tensor][0] : 0;
}

Broadcast::Broadcast(const Shape &out, const std::vector<const Array *> &tensors) {
    constexpr int64_t LONG = 256; /* rows are read where they are from here on */
    int64_t elements = count_of(out);
    for (auto *tensor : tensors) {
        data.push_back((const char *)tensor->data);
        bytes.push_back((int)bytes_of(tensor->type.type));
        dimensions.strides.push_back(broadcast_strides(tensor->type.shape, out));
    }
    count = size = rows = row = rows_each = 0;
    parts = 1;
    if (!elements) return;
    dimensions.sizes = out;
    dimensions.simplify();
    row = dimensions.sizes.back();
    rows = elements / row;
    if (row >= LONG || rows == 1) {
        parts = (row + MOST - 1) / MOST;
        count = rows * parts;
        size = std::min(row, MOST);
    } else {
        rows_each = MOST / row;
        count = (rows + rows_each - 1) / rows_each;
        size = rows_each * row;
    }
}

/* Each element of a copy may have 8 bytes. */
int64_t Broadcast::scratch() const { return (int64_t)data.size() * MOST * 2; }

Broadcast::Reader::Reader(const Broadcast &broadcast, float *scratch) : all(broadcast) {
    for (size_t i = 0; i < all.data.size(); i++) copies[i] = (char *)(scratch + i * MOST * 2);
}

namespace {

/* Write the first element `count` times. */
template <class T> void repeat(char *to, const char *from, int64_t count) {
    constexpr int MANY = 64 / sizeof(T); /* a loop of this length is put into vectors */
    T value = *(const T *)from, *out = (T *)to;
    int64_t i = 0;
    for (; i + MANY <= count; i += MANY)
        for (int k = 0; k < MANY; k++) out[i + k] = value;
    for (; i < count; i++) out[i] = value;
}
void repeat(char *to, const char *from, int64_t count, int bytes) {
    if (bytes == 4) repeat<int32_t>(to, from, count);
    else if (bytes == 8) repeat<int64_t>(to, from, count);
    else memset(to, *from, count);
}

} // namespace

void Broadcast::Reader::read(int64_t block) {
    const Dimensions &dimensions = all.dimensions;
    int outer = (int)dimensions.sizes.size() - 1;
    if (all.rows_each == 0) {
        int64_t index = block / all.parts, part = block % all.parts * MOST;
        count = std::min(MOST, all.row - part);
        first = index * all.row + part;
        for (size_t i = 0; i < all.data.size(); i++) {
            const char *from = all.data[i] + dimensions.offset((int)i, index, outer) * all.bytes[i];
            if (dimensions.strides[i][outer]) {
                in[i] = from + part * all.bytes[i];
                continue;
            }
            if (copied[i] != from || held[i] < count) {
                repeat(copies[i], from, count, all.bytes[i]);
                copied[i] = from;
                held[i] = count;
            }
            in[i] = copies[i];
        }
        return;
    }
    int64_t begin = block * all.rows_each, end = std::min(begin + all.rows_each, all.rows);
    first = begin * all.row;
    count = (end - begin) * all.row;
    for (size_t i = 0; i < all.data.size(); i++) {
        auto &strides = dimensions.strides[i];
        int bytes = all.bytes[i];
        bool same = true, adjacent = strides[outer] == 1; /* all rows are one; all rows lie next to each other */
        int64_t size = all.row;
        for (int d = outer - 1; d >= 0; d--) {
            same = same && strides[d] == 0;
            adjacent = adjacent && strides[d] == size;
            size *= dimensions.sizes[d];
        }
        in[i] = copies[i];
        if (adjacent) {
            in[i] = all.data[i] + first * bytes;
            continue;
        }
        if (same) {
            if (held[i] >= count) continue;
            held[i] = count;
        }
        char *to = copies[i];
        int64_t inner = dimensions.sizes[outer - 1], position = begin % inner;
        const char *from = all.data[i] + dimensions.offset((int)i, begin, outer) * bytes;
        for (int64_t r = begin; r < end; r++, to += all.row * bytes) {
            if (strides[outer]) memcpy(to, from, all.row * bytes);
            else repeat(to, from, all.row, bytes);
            if (++position < inner) {
                from += strides[outer - 1] * bytes;
            } else if (r + 1 < end) {
                position = 0;
                from = all.data[i] + dimensions.offset((int)i, r + 1, outer) * bytes;
            }
        }
    }
}

} // namespace fggp
