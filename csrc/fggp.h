/* fggp's C interface.
 *
 * The first part runs pruned networks: load a file that fggp wrote, run it, free it.
 * The second part is the sparse kernels alone. A program is a list of operations on activations at fixed addresses. It
 * is built once for given shapes; each run gets only the addresses of its inputs and outputs. All numbers are float32.
 * The third part is the selection: passes over the weights of a network that is being pruned.
 */
#ifndef FGGP_H
#define FGGP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* What functions return. */
enum { FGGP_OK, FGGP_OUT_OF_MEMORY, FGGP_REFUSED };

/* Types of numbers: float, int64_t, and uint8_t that is 0 or 1. */
enum { FGGP_F32, FGGP_I64, FGGP_BOOL };

/* A tensor: its elements in row-major order, without gaps. */
typedef struct {
    const char *name; /* UTF-8 */
    int32_t type, rank;
    const int64_t *shape; /* `rank` sizes */
    const void *data;
} fggp_array;

/* A network. Each may be used by one thread at a time. It is not tied to the thread that made it. */
typedef struct fggp_network fggp_network;

/* Load a network from a file, or from bytes, which are not needed afterwards. `network` is set even if the file is
 * refused, so that fggp_error() can say why, and must be freed. It is NULL if memory ran out, or if a part of libfggp is
 * missing. */
int32_t fggp_load(const char *path, fggp_network **network);
int32_t fggp_load_bytes(const void *bytes, int64_t size, fggp_network **network);
/* The same from a description (docs/network-file.md) and the tensors that it names, which are copied. */
int32_t fggp_build(const char *description, int64_t length, const fggp_array *tensors, int32_t count,
                   fggp_network **network);
void fggp_free(fggp_network *);

/* Why the last function that this network was given to did not return FGGP_OK: a sentence in UTF-8. NULL is allowed, and
 * means the network that could not be made. */
const char *fggp_error(const fggp_network *);
/* The network's inputs, outputs and the metadata of its file, as JSON. */
const char *fggp_describe(const fggp_network *);

/* Run the network on `threads` threads, the caller's included.
 *
 * inputs: by name, in any order. The first run with inputs of new shapes takes longer, because it makes a plan for them.
 * outputs: set to the network's outputs, in their order, which stay until the network is used again.
 * Returns FGGP_REFUSED if an input is missing, unknown, or of a wrong type or shape: fggp_error() names it. */
int32_t fggp_run(fggp_network *, const fggp_array *inputs, int32_t count, int32_t threads, const fggp_array **outputs,
                 int32_t *output_count);

/* Run the network a few times for these inputs. profile: set to what it does, as an object in JSON, which stays until the
 * next call. A large batch may go through the network in pieces: "images" is the size of a piece (of dimension 0), or of
 * the batch. "memory" is how many bytes the values between the network's operations take. "steps" is what it does with one
 * piece, in order. Each step has "names" and "operators", those of its nodes, which are empty for a conversion of layout;
 * "runs": "kernels" (sparse), "operator" (dense) or "conversion"; and "milliseconds". */
int32_t fggp_profile(fggp_network *, const fggp_array *inputs, int32_t count, int32_t threads, const char **profile);

/* An activation: `groups` × `channels` planes of `height` × `width` pixels, each pixel `lanes` floats wide.
 *
 * lanes = fggp_lanes(): for batches. A group is `lanes` images, and a vector holds the same pixel of each.
 * lanes = 1: for single images. A group is one image, and a vector holds consecutive pixels of a plane, row after row.
 *
 * Pixel (y, x) is at (y * row + x) * lanes. The floats between width and row, and between a plane's last row and the
 * next plane, are zero and serve as padding: the right margin of a row is also the left margin of the next row.
 * fggp_lanes() floats after the last pixel may be read.
 */
typedef struct {
    float *data;
    int32_t lanes, groups, channels, height, width;
    int64_t row;   /* pixels from one row to the next */
    int64_t plane; /* pixels from one channel to the next */
    int64_t group; /* pixels from one group to the next */
} fggp_tensor;

/* A non-zero weight: its value, and the offset of its input from the output's pixel, in bytes. */
typedef struct {
    int32_t offset;
    float value;
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
} fggp_conv;

typedef struct {
    fggp_tensor in, out;
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    int32_t count_padding; /* averages: whether padded pixels count */
    float divisor;         /* averages: 0 for the size of the window */
} fggp_pool;

typedef struct fggp_program fggp_program;

/* Raised with every change of this interface: Python refuses kernels that were built for another one. */
#define FGGP_INTERFACE 4
int32_t fggp_interface(void);

const char *fggp_cpu(void);   /* the processor this build is for: "avx512", "avx2" or "generic" */
int32_t fggp_lanes(void);     /* floats in a vector */
int32_t fggp_registers(void); /* the most vectors that a tile may have */

fggp_program *fggp_program_new(void); /* NULL: out of memory */
void fggp_program_free(fggp_program *);

/* All functions below return 0, or 1 if memory ran out. */

/* Each fggp_add_… adds one operation. The memory behind its pointers must outlive the program. */

/* A chain of convolutions. Each after the first is pointwise (1×1, stride 1) and reads the output of the one before it,
 * tile by tile, while the tile is in the caches. All use the tiles of the first. */
int32_t fggp_add_conv(fggp_program *, const fggp_conv *chain, int32_t length);
/* out[n, o] = activation(Σ value · in[n, offset] + bias) for single images; in and out are rows of features. */
int32_t fggp_add_product(fggp_program *, const fggp_conv *);
/* A convolution of single images whose stride is 2 and whose chunks are 1. Reading its input with gaps is slower than
 * reading an unfolded one, but saves unfolding, which few weights do not pay for. After the last pixel that the output
 * depends on, 2 * fggp_lanes() further floats may be read. */
int32_t fggp_add_strided(fggp_program *, const fggp_conv *);
int32_t fggp_add_max_pool(fggp_program *, const fggp_pool *);
int32_t fggp_add_average_pool(fggp_program *, const fggp_pool *);
/* Each output pixel is the mean of its part of the input; the parts are as even as possible. */
int32_t fggp_add_adaptive_average(fggp_program *, const fggp_tensor *in, const fggp_tensor *out);
/* out = activation(a + b). */
int32_t fggp_add_sum(fggp_program *, const fggp_tensor *a, const fggp_tensor *b, const fggp_tensor *out,
                     const fggp_activation *);
/* out = activation(in · gate), where gate has one pixel for each channel of each image. */
int32_t fggp_add_gate(fggp_program *, const fggp_tensor *in, const fggp_tensor *gate, const fggp_tensor *out,
                      const fggp_activation *);
/* out = activation(scale · in + shift), with a scale (NULL: 1) and a shift (NULL: 0) for each channel. */
int32_t fggp_add_affine(fggp_program *, const fggp_tensor *in, const fggp_tensor *out, const float *scale,
                        const float *shift, const fggp_activation *);
/* Copy channels of `in` to channels of `out`: `count` pairs of numbers, from and to. */
int32_t fggp_add_copy(fggp_program *, const fggp_tensor *in, const fggp_tensor *out, const int32_t *pairs,
                      int32_t count);
/* Turn pixels into channels: out has in.channels * in.height * in.width channels of one pixel. */
int32_t fggp_add_flatten(fggp_program *, const fggp_tensor *in, const fggp_tensor *out);
/* Make a channel for each input channel and kernel position: a convolution of the result has a 1×1 kernel. */
int32_t fggp_add_unfold(fggp_program *, const fggp_pool *);
/* The layout of a tensor of the caller's: floats from one image, channel, row and pixel to the next. */
typedef struct {
    int64_t image, channel, row, pixel;
} fggp_strides;

/* Load from, and store to, the address in a slot. */
int32_t fggp_add_load(fggp_program *, int32_t slot, const fggp_strides *, const fggp_tensor *out);
int32_t fggp_add_store(fggp_program *, const fggp_tensor *in, int32_t slot, const fggp_strides *);

/* Run all operations in order, each on `threads` threads, the caller's included (or on fewer if the system provides no
 * more). A program may only run once at a time. The images may fill only some lanes of the last group.
 * seconds: NULL, or an array with a number for each operation, to which its time is added. */
int32_t fggp_program_run(fggp_program *, void *const *slots, int32_t images, int32_t threads, double *seconds);

/* The type of a layer's numbers. */
enum { FGGP_FLOAT32, FGGP_BFLOAT16 };

/* A layer of `count` weights as a selection reads it, and the weights' marks; all arrays are contiguous. */
typedef struct {
    const void *weight;
    const void *grad; /* of the same type; NULL: all zero */
    uint8_t *marks;
    int64_t count;
    int64_t type;
} fggp_layer;

/* The score that weights are ranked by: |θ|, |g| or |θ·g| as a float32, or its negative. */
enum { FGGP_WEIGHT, FGGP_GRADIENT, FGGP_PRODUCT };
typedef struct {
    int32_t quantity, negated;
} fggp_score;

/* How many scores are < a, = a, strictly between a and b, and = b (0 if a = b). */
typedef struct {
    int64_t below_a, at_a, inside, at_b;
} fggp_counts;

/* Count the scores of the weights marked `among` around a ≤ b, and gather those strictly between into `inside`, in any
 * order. `inside` has room for `capacity` scores; further ones are counted but not gathered. NaN is not counted. */
int32_t fggp_survey(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float a, float b,
                    float *inside, int64_t capacity, int32_t threads, fggp_counts *counts);
/* Draw a sample: of each layer, look at ⌈share · count⌉ weights, spread evenly, and gather the scores of those marked
 * `among` into `values`, in any order, without NaN. `values` must have room for all weights that are looked at. */
int32_t fggp_draw(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, double share, float *values,
                  int32_t threads, int64_t *drawn);
/* Mark the weights marked `among` anew: 1 if their score is < value, `equal` if it is = value, 0 otherwise. */
int32_t fggp_cut(const fggp_layer *layers, int32_t count, fggp_score score, int32_t among, float value, int32_t equal,
                 int32_t threads);

/* `count` numbers of 1, 2, 4 or 8 bytes, and a mask byte for each: 1 to keep it, 0 to set it to zero. */
typedef struct {
    void *data;
    const uint8_t *mask;
    int64_t count;
    int64_t bytes;
} fggp_masked;

/* Set the numbers whose mask byte is 0 to +0. */
int32_t fggp_zero(const fggp_masked *tensors, int32_t count, int32_t threads);

/* `count` floats of 2, 4 or 8 bytes, and a mask of the bits of their exponent. */
typedef struct {
    const void *data;
    int64_t count;
    int64_t bytes;
    uint64_t exponent;
} fggp_numbers;

/* Set `finite` to whether no number is infinite or NaN. */
int32_t fggp_finite(const fggp_numbers *tensors, int32_t count, int32_t threads, int32_t *finite);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
