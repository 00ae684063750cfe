/* What convolutions have in common: their geometry, the checks of what they read, and the kinds that are computed apart. */
#ifndef FGGP_OPERATORS_CONVOLUTION_H
#define FGGP_OPERATORS_CONVOLUTION_H

#include <array>
#include <memory>

#include "operators/inputs.h"
#include "operators/operator.h"

namespace fggp {

/* Planes, rows, columns. A dimension that a tensor lacks has size 1. */
constexpr int AXES = 3;
typedef std::array<int64_t, AXES> Sizes3;

inline int64_t product(const Sizes3 &sizes) { return sizes[0] * sizes[1] * sizes[2]; }

/* A convolution from `in` to `out` pixels, of `channels` to `filters` channels. A transposed one goes from `out` to
 * `in`: it is what carries the gradients of the other one back. */
struct Geometry {
    int64_t images = 0, groups = 1, channels = 0, filters = 0; /* channels and filters: of all groups */
    Sizes3 in = {1, 1, 1}, out = {1, 1, 1}, kernel = {1, 1, 1}, stride = {1, 1, 1}, dilation = {1, 1, 1}, padding = {};
    int64_t in_pixels() const { return product(in); }
    int64_t out_pixels() const { return product(out); }
    int64_t taps() const { return product(kernel); }
    int64_t group_channels() const { return channels / groups; }
    int64_t group_filters() const { return filters / groups; }
    int64_t depth() const { return group_channels() * taps(); } /* the inputs of an output */
    /* The input pixel that an output pixel reads at a position of the kernel; it may be outside of the image. */
    int64_t input(int axis, int64_t output, int64_t tap) const {
        return output * stride[axis] - padding[axis] + tap * dilation[axis];
    }
};

/* What a convolution reads and writes besides its input. */
struct ConvolutionTensors {
    const float *x, *weight, *bias, *residual;
    float *out;
    fggp_activation activation;
    bool constant_weight;
};

/* What a node's attributes say, for an input and a weight of those types; all but the sizes of the output. */
Geometry geometry_of(const Node &, const TensorType &x, const TensorType &weight);
/* The sizes of the output along an axis; less than 1: the kernel is larger than the padded input. */
int64_t outputs_of(const Geometry &, int axis);
/* Checks what both kinds of convolutions have in common. most: the number of inputs. */
void check_convolution(const Node &, const InputTypes &, size_t most);
/* Checks the sizes of an input and a weight, of any types. */
void check_sizes(const Node &, const TensorType &x, const TensorType &weight);
/* The geometry of a convolution that is not transposed, whose sizes fit each other, or else it is refused. */
Geometry checked_geometry(const Node &, const TensorType &x, const TensorType &weight);
Shape output_shape(const Geometry &, int rank);
void check_bias(const Node &, const TensorType *bias, int64_t filters);
ConvolutionTensors tensors_of(const Node &, const InputArrays &, const Array &out);

/* Depthwise convolutions (depthwise.cpp): each output channel reads one input channel. */
bool is_depthwise(const Geometry &);
void make_depthwise(const Geometry &, const ConvolutionTensors &, Operations &);
/* Convolutions whose input is copied once, instead of patches of it (direct.cpp). */
bool is_direct(const Geometry &, const ConvolutionTensors &);
std::unique_ptr<Operation> make_direct(const Geometry &, const ConvolutionTensors &);

} // namespace fggp
#endif
