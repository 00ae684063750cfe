/* Elements of any type, for operators that move them and do not compute with them. */
#ifndef FGGP_OPERATORS_ELEMENTS_H
#define FGGP_OPERATORS_ELEMENTS_H

#include <cstring>
#include <vector>

#include "network/types.h"

namespace fggp {

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
inline std::vector<int64_t> strides_of(const Shape &shape) {
    std::vector<int64_t> strides(shape.size());
    int64_t stride = 1;
    for (size_t d = shape.size(); d-- > 0; stride *= shape[d]) strides[d] = stride;
    return strides;
}

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

} // namespace fggp
#endif
