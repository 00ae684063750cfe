#include "operators/convolution.h"

namespace fggp {
namespace {

const float *optional_floats(const InputArrays &in, size_t i) {
    const Array *array = optional(in, i);
    return array ? array->floats() : nullptr;
}

} // namespace

FGGP_ONCE
Geometry geometry_of(const Node &node, const TensorType &x, const TensorType &weight) {
    const int spatial = x.rank() - 2, missing = AXES - spatial;
    const auto stride = numbers_by_dimension(node, "stride", spatial, 1);
    const auto padding = numbers_by_dimension(node, "padding", spatial, 0);
    const auto dilation = numbers_by_dimension(node, "dilation", spatial, 1);
    Geometry g;
    g.images = x.shape[0], g.channels = x.shape[1];
    g.groups = node.integer("groups");
    g.filters = weight.shape[0];
    for (int d = 0; d < spatial; d++) {
        g.in[missing + d] = x.shape[2 + d];
        g.kernel[missing + d] = weight.shape[2 + d];
        g.stride[missing + d] = stride[d], g.padding[missing + d] = padding[d], g.dilation[missing + d] = dilation[d];
    }
    return g;
}

FGGP_ONCE
void check_convolution(const Node &node, const InputTypes &in, size_t most) {
    check_inputs(node, in, 2, most);
    static const char *const NAMES[] = {"its input", "its weight", "its bias", "its residual"};
    for (size_t i = 0; i < in.size(); i++)
        if (in[i]) check_type(node, *in[i], Type::F32, NAMES[i]);
    check_sizes(node, *in[0], *in[1]);
    node.activation();
}

FGGP_ONCE
void check_sizes(const Node &node, const TensorType &x, const TensorType &weight) {
    if (x.rank() < 3 || x.rank() > 2 + AXES) node.refuse(text_of(x) + " does not have 3 to 5 dimensions");
    if (weight.rank() != x.rank())
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) +
                    "; they must have as many dimensions");
    for (int d = 2; d < x.rank(); d++) {
        if (x.shape[d] < 1 || x.shape[d] > INT32_MAX) node.refuse(text_of(x) + " has a dimension of a wrong size");
        if (weight.shape[d] < 1 || weight.shape[d] > (1 << 30))
            node.refuse("its weight is " + text_of(weight) + ", which has a dimension of a wrong size");
    }
    const int64_t groups = node.integer("groups");
    if (groups < 1 || x.shape[1] % groups || weight.shape[0] % groups)
        node.refuse("\"groups\" is " + std::to_string(groups) + ", and must divide the channels of its input, " +
                    text_of(x) + ", and the first dimension of its weight, " + text_of(weight));
}

FGGP_ONCE
Geometry checked_geometry(const Node &node, const TensorType &x, const TensorType &weight) {
    Geometry g = geometry_of(node, x, weight);
    if (weight.shape[1] != g.group_channels())
        node.refuse("its input is " + text_of(x) + " and its weight " + text_of(weight) + "; with " +
                    std::to_string(g.groups) + " groups, the weight's second dimension must be " +
                    std::to_string(g.group_channels()));
    for (int axis = AXES - (x.rank() - 2); axis < AXES; axis++) {
        g.out[axis] = outputs_of(g, axis);
        if (g.out[axis] < 1)
            node.refuse("its kernel, " + std::to_string((g.kernel[axis] - 1) * g.dilation[axis] + 1) +
                        " wide, is larger than its padded input, which is " +
                        std::to_string(g.in[axis] + 2 * g.padding[axis]));
    }
    return g;
}

Shape output_shape(const Geometry &g, int rank) {
    Shape shape{g.images, g.filters};
    shape.insert(shape.end(), g.out.end() - (rank - 2), g.out.end());
    return shape;
}

FGGP_ONCE
void check_bias(const Node &node, const TensorType *bias, int64_t filters) {
    if (bias && bias->shape != Shape{filters})
        node.refuse("its bias is " + text_of(*bias) + "; it must be F32 " + text_of(Shape{filters}));
}

int64_t outputs_of(const Geometry &g, int axis) {
    const int64_t room = g.in[axis] + 2 * g.padding[axis] - (g.kernel[axis] - 1) * g.dilation[axis] - 1;
    return room < 0 ? 0 : room / g.stride[axis] + 1;
}

FGGP_ONCE
ConvolutionTensors tensors_of(const Node &node, const InputArrays &in, const Array &out) {
    return {in[0]->floats(), in[1]->floats(), optional_floats(in, 2), optional_floats(in, 3),
            (float *)out.data, node.activation(), in[1]->constant};
}

} // namespace fggp
