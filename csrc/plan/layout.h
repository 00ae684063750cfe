/* The memory layout of activations in the kernels, and how a tensor in row-major order maps to it. */
#ifndef FGGP_PLAN_LAYOUT_H
#define FGGP_PLAN_LAYOUT_H

#include "runtime/kernels.h"
#include "network/types.h"

namespace fggp {

/* How the kernels read a tensor's dimensions. */
enum class Kind {
    IMAGES,        /* [N, C], [N, C, W] or [N, C, H, W] */
    CHANNELS_LAST, /* [N, W, C] or [N, H, W, C] */
    TOKENS,        /* [..., C]: one image with a pixel for each index of the other dimensions */
};
constexpr Kind KINDS[] = {Kind::IMAGES, Kind::CHANNELS_LAST, Kind::TOKENS};

struct ImageSizes {
    int64_t images, channels, height, width;
    int64_t pixels() const { return height * width; }
    bool operator==(const ImageSizes &other) const;
};

/* Whether a tensor of this shape can be read so, and no size is 0 or too large for the kernels' numbers. */
bool can_read(const Shape &, Kind);
ImageSizes image_sizes(const Shape &, Kind);
/* The dimension of the channels. */
int channel_dimension(const Shape &, Kind);
/* The strides of a tensor in row-major order between images, channels, rows and pixels. */
fggp_strides pixel_strides(const Shape &, Kind);

/* Channels of U8 that lie together. */
constexpr int64_t CHANNELS_PER_BLOCK = 4;
inline int64_t blocks_of(int64_t channels) { return (channels + CHANNELS_PER_BLOCK - 1) / CHANNELS_PER_BLOCK; }

/* Padding around an image that kernels read. */
struct Margin {
    int64_t rows = 0;                         /* zeros below each image, which are also those above the next one */
    int64_t columns = 0;                      /* zeros to the right of each row, and to the left of the next one */
    int64_t reach_rows = 0, reach_columns = 0; /* what kernels may read besides, for results that are not used */
    void include(const Margin &);
};

/* The layout of an activation, as runtime/kernels.h describes it. All sizes are in cells of `lanes` floats, and the
 * channels of U8 are counted in blocks. */
struct ActivationLayout {
    int64_t lanes = 0, groups = 0, channels = 0, height = 0, width = 0;
    int64_t row = 0, plane = 0; /* the distance from one row, or channel, to the next */
    int64_t lead = 0;           /* zeros before the first plane */
    int64_t tail = 0;           /* after the last plane, what may be read */
    uint8_t padding = 0;        /* the bytes of all zeros around pixels, where U8 stands for zero by another number */

    /* The number of floats with everything around that may be read. */
    int64_t floats() const { return (lead + groups * channels * plane + tail) * lanes; }
    /* Whether it is too large for the kernels: a group for the 32-bit offsets of weights, or a number for its type. */
    bool exceeds_offsets() const;
    bool too_large() const;
    /* Whether it has padding, which must stay as it is. */
    bool padded() const { return lead > 0 || (row > width && height > 1); }
    fggp_tensor tensor(float *memory) const;
    bool operator==(const ActivationLayout &) const;
};

/* row: the distance between rows, if another activation determines it; 0: the least for this margin. */
ActivationLayout choose_layout(const ImageSizes &, int lanes, const Margin &, int64_t row = 0);

} // namespace fggp
#endif
