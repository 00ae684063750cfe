/* The C interface of sparse training; only the Python package's libraries have it. */
#ifndef FGGP_TRAINING_H
#define FGGP_TRAINING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

/* A two-dimensional convolution; a linear layer is one whose images have one pixel. Pairs are of rows and columns. */
typedef struct {
    int32_t out_channels, in_channels;
    int32_t size[2]; /* of the input */
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    int64_t weight_strides[4]; /* of the weight, and of its mask: output channel, input channel, row, column */
} fggp_convolved;

/* The products of a layer with a mask. Any number of threads may use it at once. */
typedef struct fggp_products fggp_products;

/* All functions return 0, or 1 if memory ran out. Activations are [channel][row][column][image], of FGGP_FLOAT32 or
 * FGGP_BFLOAT16; sums are float32. Results do not depend on the number of threads. */

/* mask: a byte for each weight, 0 if it is pruned. */
int32_t fggp_products_make(const fggp_convolved *, const uint8_t *mask, fggp_products **);
void fggp_products_free(fggp_products *);
/* y: the layer's output, with its bias, which may be NULL. */
int32_t fggp_products_forward(const fggp_products *, const float *weight, const float *bias, const void *x, int32_t type,
                              int64_t images, int32_t threads, void *y);
/* dx: the gradient of the input for that of the output, dy. */
int32_t fggp_products_input_gradient(const fggp_products *, const float *weight, const void *dy, int32_t type, int64_t images,
                                     int32_t threads, void *dx);
/* dw: of the weight's layout; the gradients of active weights are written, the others are left as they are. */
int32_t fggp_products_weight_gradient(const fggp_products *, const void *x, const void *dy, int32_t type, int64_t images,
                                      int32_t threads, float *dw);

/* A batch norm by the statistics of the batch: of `channels` channels of `count` numbers, which adjoin. `weight` and `bias`
 * have a number for each channel, or are NULL: 1 and 0. */
typedef struct {
    int64_t channels, count;
    float epsilon;
    const float *weight, *bias;
} fggp_batch_norm;

/* y: the numbers normalised; and each channel's mean and variance (of the batch, without a correction of bias). */
int32_t fggp_batch_norm_forward(const fggp_batch_norm *, const void *x, int32_t type, int32_t threads, void *y, float *mean,
                                float *variance);
/* The gradients of x, weight and bias for that of y, dy; any of them may be NULL. mean, variance: as `forward` wrote them. */
int32_t fggp_batch_norm_backward(const fggp_batch_norm *, const void *x, const void *dy, int32_t type, const float *mean,
                                 const float *variance, int32_t threads, void *dx, float *dw, float *db);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
