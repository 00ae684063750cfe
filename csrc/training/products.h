/* The products of a sparse layer in training: forward, and the gradients of its input and of its active weights.
 *
 * Activations are [channel][row][column][image]: one vector holds the same pixel of LANES images, and no product needs to
 * rearrange them. A linear layer is a convolution whose images have one pixel. */
#ifndef FGGP_TRAINING_PRODUCTS_H
#define FGGP_TRAINING_PRODUCTS_H

#include <vector>

#include "fggp.h"
#include "training/training.h"

namespace fggp {

/* A weight that a product multiplies with: where the number is that it multiplies, in floats from the place where the
 * pixel reads, and which one the weight is. Layers with more weights than that can number are not accelerated. */
struct Tap {
    int32_t offset, weight;
};

/* What a product reads, packed for the cache: some rows of all channels of some images, with margins of zeros. Output
 * pixel (i, j) of a grid reads from (i · stride + first, j · stride + first) on, as far as `extent`. */
struct Reading {
    int channels, size[2]; /* rows and columns */
    int stride[2], first[2], extent[2];
};

/* Output pixels that read alike: (start + step · i, start + step · j) for i and j below `size`; and for each output
 * channel its taps, from starts[channel] to before starts[channel + 1]. */
struct Grid {
    int start[2], size[2];
    std::vector<int64_t> starts;
    std::vector<Tap> taps;
};

/* A product in one direction. Backward, a stride makes several grids: pixels of the input that other rows and columns of
 * the window reach. */
struct Direction {
    Reading in;
    int channels, size[2]; /* of the output */
    int step[2];
    std::vector<Grid> grids;
    int vectors;   /* of images in a pack */
    int band;      /* rows of a grid in a pack */
    int row, plane; /* pixels from one row to the next, and from one channel to the next, in a pack */
};

} // namespace fggp

struct fggp_products {
    fggp::Direction forward, backward;
};

#endif
