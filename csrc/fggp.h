/* fggp's C interface.
 *
 * The first part runs pruned networks: load a file that fggp wrote, run it, free it.
 * The second part is the selection: passes over the weights of a network that is being pruned.
 */
#ifndef FGGP_H
#define FGGP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

/* What functions return. */
enum { FGGP_OK, FGGP_OUT_OF_MEMORY, FGGP_REFUSED };

/* Types of numbers: float, int64_t, uint8_t that is 0 or 1, uint8_t and int8_t. */
enum { FGGP_F32, FGGP_I64, FGGP_BOOL, FGGP_U8, FGGP_I8 };

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
 * the batch. "memory" is how many bytes the values between the network's operations take. "trials" is how often parts of
 * the network have been timed to make plans. "steps" is what it does with one piece, in order. Each step has "names" and
 * "operators", those of its nodes, which are empty for a conversion of layout; "runs": "kernels" (sparse), "operator"
 * (dense) or "conversion"; and "milliseconds". */
int32_t fggp_profile(fggp_network *, const fggp_array *inputs, int32_t count, int32_t threads, const char **profile);

/* Raised with every change of this interface: Python refuses kernels that were built for another one. */
#define FGGP_INTERFACE 8
int32_t fggp_interface(void);

const char *fggp_cpu(void);   /* the processor this build is for: "avx512", "avx2" or "generic" */
int32_t fggp_lanes(void);     /* floats in a vector */
int32_t fggp_registers(void); /* the most vectors whose sums are held in registers */

/* All functions below return 0, or 1 if memory ran out. */

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

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
