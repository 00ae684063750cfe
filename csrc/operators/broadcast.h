/* Tensors that are read with other shapes or in another order than they lie in memory. */
#ifndef FGGP_OPERATORS_BROADCAST_H
#define FGGP_OPERATORS_BROADCAST_H

#include <algorithm>
#include <vector>

#include "network/graph.h"
#include "network/types.h"

namespace fggp {

/* The strides of a tensor in row-major order, in elements. */
std::vector<int64_t> row_major(const Shape &);

/* The shape that tensors of these shapes are expanded to. Refused: they do not fit. */
Shape broadcast_shape(const Node &, const std::vector<const Shape *> &);
/* The strides with which a tensor is read as if it had the shape `out`: 0 along a dimension that is expanded. */
std::vector<int64_t> broadcast_strides(const Shape &shape, const Shape &out);

/* Dimensions of a loop over one or several tensors, and each tensor's strides in elements. */
struct Dimensions {
    Shape sizes;
    std::vector<std::vector<int64_t>> strides; /* [tensor][dimension] */

    /* Drop dimensions of size 1, and merge neighbours that every tensor goes through as if they were one. At least one
     * dimension stays. */
    void simplify();
    /* The offset of the element of a tensor at this index of the first `count` dimensions, counted in row-major
     * order. */
    int64_t offset(int tensor, int64_t index, int count) const;
};

/* Reads up to three tensors as if they were expanded to one shape, in blocks whose elements lie next to each other.
 * Parts that lie so in memory are read there; others are copied first, into memory that the first-level cache holds. */
class Broadcast {
  public:
    Broadcast(const Shape &out, const std::vector<const Array *> &tensors);

    static constexpr int64_t MOST = 2048; /* elements in a block */

    int64_t blocks() const { return count; }
    /* Elements in a block, about; for the work that a block is. */
    int64_t block_size() const { return size; }
    /* Floats of scratch memory. */
    int64_t scratch() const;

    /* One reader of blocks; each thread has its own. */
    class Reader {
      public:
        Reader(const Broadcast &broadcast, float *scratch);
        const void *in[3];    /* elements of each tensor */
        int64_t first, count; /* where they are in the output, and how many */
        void read(int64_t block);

      private:
        const Broadcast &all;
        char *copies[3];
        const char *copied[3] = {}; /* the element that a copy repeats, */
        int64_t held[3] = {};       /* and how many elements of a copy may be used again */
    };

  private:
    Dimensions dimensions;
    std::vector<const char *> data;
    std::vector<int> bytes; /* of an element */
    int64_t rows, row;      /* of the last dimension: how many, their elements */
    int64_t count, size;
    int64_t parts, rows_each; /* either blocks are parts of a row, or they have several whole rows */
    bool whole(int tensor) const { return dimensions.sizes.size() == 1 && dimensions.strides[tensor][0] == 1; }
};

} // namespace fggp
#endif
