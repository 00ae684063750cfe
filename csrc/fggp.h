/* The kernels' C interface: plain pointers and integers, so that it outlives any version of PyTorch.
 *
 * First the sparse runtime. A program is a list of operations on activations that stay where they are. It is built once
 * for given shapes and then run with nothing but the addresses of its inputs and outputs. All numbers are float32.
 * Then the selection: passes over the weights of a network that is being pruned.
 */
#ifndef FGGP_H
#define FGGP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* An activation: `groups` × `channels` planes of `height` × `width` pixels, each pixel `lanes` floats wide.
 *
 * lanes = fggp_lanes(): a vector holds one pixel of as many images, and a group is that many images (batches).
 * lanes = 1: a vector runs along the plane, row after row, and a group is an image (single images).
 *
 * Pixel (y, x) is at (y * row + x) * lanes. What lies between width and row, and between one plane's last row and the
 * next plane, is zero and serves as padding: the right margin of a row is the left margin of the next one.
 */
typedef struct {
    float *data;
    int32_t lanes, groups, channels, height, width;
    int64_t row;   /* pixels from one row to the next */
    int64_t plane; /* pixels from one channel to the next */
    int64_t group; /* pixels from one group to the next */
} fggp_tensor;

/* A weight that is left: what to multiply, and where its input lies, in bytes from the output's pixel. */
typedef struct {
    int32_t offset;
    float value;
} fggp_entry;

/* A sparse convolution; out = relu?(weights ∗ in + bias + residual?).
 *
 * Entries are sorted by chunk of input channels, then by output channel; starts has chunks * out.channels + 1 numbers.
 * A chunk's inputs, for one tile, are meant to fit the first-level cache. */
typedef struct {
    fggp_tensor in, out, residual; /* residual.data NULL: none; it may be out itself */
    const fggp_entry *entries;
    const uint32_t *starts;
    const float *bias; /* one a channel */
    int32_t chunks, stride, relu;
    int32_t tile_rows, tile_columns; /* vectors whose sums are kept in registers: rows × columns */
} fggp_conv;

typedef struct {
    fggp_tensor in, out;
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    int32_t count_padding; /* averages: padded pixels count */
    float divisor;         /* averages: 0 where it is the window's size */
} fggp_pool;

typedef struct fggp_program fggp_program;

/* Goes up with every change of this header: Python must not load kernels that were built from another one. */
#define FGGP_INTERFACE 2
int32_t fggp_interface(void);

const char *fggp_cpu(void); /* "avx512", "avx2", … : the kernels in use */
int32_t fggp_lanes(void);
int32_t fggp_registers(void); /* most vectors a tile may have */

fggp_program *fggp_program_new(void); /* NULL: no memory */
void fggp_program_free(fggp_program *);

/* What returns an int32_t returns 0, or 1 where memory ran out. */

/* Each adds one operation. What they point to must live as long as the program. */
/* A chain of convolutions. Each after the first is pointwise (1×1, stride 1) and reads what the one before it writes:
 * it takes each tile while it is in the caches. The first one's tiles are everyone's. */
int32_t fggp_add_conv(fggp_program *, const fggp_conv *chain, int32_t length);
/* out[n, o] = relu?(Σ value · in[n, offset] + bias) for single images; in and out are rows of features. */
int32_t fggp_add_product(fggp_program *, const fggp_conv *);
int32_t fggp_add_max_pool(fggp_program *, const fggp_pool *);
int32_t fggp_add_average_pool(fggp_program *, const fggp_pool *);
/* Each output pixel is the mean of its share of the input, shares as even as they can be. */
int32_t fggp_add_adaptive_average(fggp_program *, const fggp_tensor *in, const fggp_tensor *out);
int32_t fggp_add_sum(fggp_program *, const fggp_tensor *a, const fggp_tensor *b, const fggp_tensor *out, int32_t relu);
/* out = relu?(scale · in + shift), a scale and a shift a channel; NULL: 1 and 0. */
int32_t fggp_add_affine(fggp_program *, const fggp_tensor *in, const fggp_tensor *out, const float *scale,
                        const float *shift, int32_t relu);
/* Copy into channels first … of out. */
int32_t fggp_add_copy(fggp_program *, const fggp_tensor *in, const fggp_tensor *out, int32_t first);
/* Pixels become channels: out has in.channels * height * width channels of one pixel. */
int32_t fggp_add_flatten(fggp_program *, const fggp_tensor *in, const fggp_tensor *out);
/* One channel for each input channel and kernel position: a convolution becomes one of a single pixel. */
int32_t fggp_add_unfold(fggp_program *, const fggp_pool *);
/* Where a tensor of the caller's lies: floats from one image, channel, row and pixel to the next. */
typedef struct {
    int64_t image, channel, row, pixel;
} fggp_strides;

/* From and to the address in a slot. */
int32_t fggp_add_load(fggp_program *, int32_t slot, const fggp_strides *, const fggp_tensor *out);
int32_t fggp_add_store(fggp_program *, const fggp_tensor *in, int32_t slot, const fggp_strides *);

/* Run all operations in order, each on `threads` threads, the caller's being one of them; on fewer, where the system
 * gives no more. One run of a program at a time. `images` of the last group's lanes may be fewer than there is room
 * for. seconds: NULL, or one number an operation, to which its time is added. */
int32_t fggp_run(fggp_program *, void *const *slots, int32_t images, int32_t threads, double *seconds);

/* The type of a layer's numbers. */
enum { FGGP_FLOAT32, FGGP_BFLOAT16 };

/* What a selection reads of a layer, and the marks it makes: `count` weights one after the other. */
typedef struct {
    const void *weight;
    const void *grad; /* of the same type; NULL: zero */
    uint8_t *marks;
    int64_t count;
    int64_t type;
} fggp_layer;

/* What weights are ranked by: |θ|, |g| or |θ·g| as a float32, or its negative. */
enum { FGGP_WEIGHT, FGGP_GRADIENT, FGGP_PRODUCT };
typedef struct {
    int32_t quantity, negated;
} fggp_score;

/* How many scores are < a, = a, strictly between a and b, and = b. */
typedef struct {
    int64_t below_a, at_a, inside, at_b;
} fggp_counts;

/* Count the weights marked `among` around a ≤ b (where they are equal, at a alone), and gather the scores strictly
 * between into `inside`, in any order. Where there is no room for all, all are counted and some gathered. NaN is in
 * none of these. */
int32_t fggp_survey(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float a, float b,
                    float *inside, int64_t room, int32_t threads, fggp_counts *counts);
/* Gather the scores of some of the weights marked `among` into `values`, in any order, NaN left out: of each layer
 * ⌈share · count⌉ are looked at, spread evenly. There must be room for all of these. */
int32_t fggp_draw(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, double share, float *values,
                  int32_t threads, int64_t *drawn);
/* What is marked `among` becomes 1 where the score is < value, `equal` where it is = value, and 0 elsewhere. */
int32_t fggp_cut(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float value, int32_t equal,
                 int32_t threads);

/* `count` numbers of 1, 2, 4 or 8 bytes, and for each 1, or 0 where it is to be zero. */
typedef struct {
    void *data;
    const uint8_t *mask;
    int64_t count;
    int64_t bytes;
} fggp_masked;

int32_t fggp_zero(const fggp_masked *tensors, int32_t count, int32_t threads);

/* `count` floats of 2, 4 or 8 bytes, and which of their bits are the exponent. */
typedef struct {
    const void *data;
    int64_t count;
    int64_t bytes;
    uint64_t exponent;
} fggp_numbers;

/* Whether none is infinite or NaN. */
int32_t fggp_finite(const fggp_numbers *tensors, int32_t count, int32_t threads, int32_t *yes);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
