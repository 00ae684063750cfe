/* What the kernels read: activations in their layout, non-zero weights, functions of numbers, and the tensors that they
 * are loaded from and stored to. All numbers are float32, but for those of quantised operations. */
#ifndef FGGP_KERNELS_H
#define FGGP_KERNELS_H

#include <stdint.h>

/* An activation: `groups` × `channels` planes of `height` × `width` pixels, each pixel `lanes` floats wide.
 *
 * lanes = LANES: for batches. A group is `lanes` images, and a vector holds the same pixel of each.
 * lanes = 1: for single images. A group is one image, and a vector holds consecutive pixels of a plane, row after row.
 *
 * Pixel (y, x) is at (y * row + x) * lanes. The floats between width and row, and between a plane's last row and the
 * next plane, are zero and serve as padding: the right margin of a row is also the left margin of the next row.
 * LANES floats after the last pixel may be read.
 *
 * Whole numbers from 0 to 255 (U8) lie in the same way, where four channels take the place of one: what is said of a
 * float holds for the four bytes that a pixel has in these channels. `channels` counts these blocks. Bytes of channels
 * beyond the last one may be anything. Padding is what stands for zero.
 */
typedef struct {
    float *data;
    int32_t lanes, groups, channels, height, width;
    int64_t row;   /* pixels from one row to the next */
    int64_t plane; /* pixels from one channel to the next */
    int64_t group; /* pixels from one group to the next */
} fggp_tensor;

/* A non-zero weight: its value, and the offset of its input from the output's pixel, in bytes. Or the weights of four
 * channels that lie in one block, of which some are not zero: bytes with signs, the first channel's the lowest. */
typedef struct {
    int32_t offset;
    union {
        float value;
        int32_t weights;
    };
} fggp_entry;

/* A function that an operation applies to each number of its result.
 *
 * FGGP_IDENTITY: none. FGGP_CLAMP: from a to b; a ReLU is from 0 to infinity. FGGP_LEAKY_RELU: a · x for negative x.
 * FGGP_ELU: b · x for positive x, else a · (exp(c · x) - 1). The others have no numbers; FGGP_GELU_TANH is the
 * approximation of FGGP_GELU with a hyperbolic tangent. All keep NaN. */
enum {
    FGGP_IDENTITY,
    FGGP_CLAMP,
    FGGP_LEAKY_RELU,
    FGGP_ELU,
    FGGP_HARD_SIGMOID,
    FGGP_HARD_SWISH,
    FGGP_SIGMOID,
    FGGP_SILU,
    FGGP_TANH,
    FGGP_GELU,
    FGGP_GELU_TANH,
    FGGP_MISH
};
typedef struct {
    int32_t kind;
    double a, b, c;
} fggp_activation;

/* A sparse convolution; out = activation(weights ∗ in + bias + residual?).
 *
 * Entries are sorted by chunk of input channels, then by output channel; starts has chunks * out.channels + 1 numbers.
 * A chunk should be small enough for its inputs of one tile to fit the first-level cache. */
typedef struct {
    fggp_tensor in, out, residual; /* residual.data may be NULL (none) or out.data */
    const fggp_entry *entries;
    const uint32_t *starts;
    const float *bias; /* one for each channel */
    fggp_activation activation;
    int32_t chunks, stride;
    int32_t tile_rows, tile_columns; /* a tile of rows × columns vectors is summed in registers */
    const struct fggp_quantized *quantized; /* NULL: all numbers are floats */
} fggp_conv;

/* What a quantised convolution has besides. It reads U8, and its residual is U8. docs/network-file.md says what it
 * computes. */
typedef struct fggp_quantized {
    int32_t channels;     /* of the output, not in blocks */
    const int32_t *first; /* for each of them, what its sum starts with */
    const float *scale;   /* for each of them */
    float low, high;      /* of its activation */
    float residual_scale;
    int32_t residual_zero;
    int32_t returns_bytes; /* or else floats */
    float out_scale;
    int32_t out_zero;
    int32_t out_padding; /* the bytes around pixels of the output */
    int32_t plain_dot;   /* without instructions that only some of the build's processors have, for tests */
} fggp_quantized;

typedef struct {
    fggp_tensor in, out;
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    int32_t count_padding; /* averages: whether padded pixels count */
    float divisor;         /* averages: 0 for the size of the window */
} fggp_pool;

/* The layout of a tensor of the caller's: floats from one image, channel, row and pixel to the next. */
typedef struct {
    int64_t image, channel, row, pixel;
} fggp_strides;

#endif
