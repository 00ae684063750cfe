#include "planes.h"

#include <algorithm>
#include <cmath>

#include "tiles.h"

namespace fggp {
namespace {

/* Pixels a task, about: less is not worth handing out. */
constexpr int64_t LEAST_FLOATS = 4096;

/* A pixel is one float (single images) or a vector of as many images'. */
template <class Pixel> Pixel get(const float *p);
template <> float get<float>(const float *p) { return *p; }
template <> vec get<vec>(const float *p) { return load(p); }
void put(float *p, float v) { *p = v; }
void put(float *p, vec v) { store(p, v); }
float rectify(float v) { return v < 0 ? 0 : v; }
vec rectify(vec v) { return positive(v); }
float larger(float a, float b) { return b > a || b != b ? b : a; }
vec larger(vec a, vec b) { return (b > a) | (b != b) ? b : a; }
template <class Pixel> Pixel all(float x) { return x - Pixel{}; }

template <class Pixel> constexpr int lanes_of() { return sizeof(Pixel) / sizeof(float); }

/* A plane of one group and channel. */
struct Plane {
    float *data;
    int64_t row; /* floats from one row to the next */
    Plane(const fggp_tensor &t, int64_t group, int64_t channel)
        : data(t.data + (group * t.group + channel * t.plane) * t.lanes), row(t.row * t.lanes) {}
};

/* Calls work.plane<Pixel>(group, channel, call) for each plane. */
template <class Work> class PlaneWise final : public Operation {
  public:
    PlaneWise(const fggp_tensor &shape, const Work &work) : shape(shape), work(work) {}

    int tasks(int threads) const override {
        int64_t planes = (int64_t)shape.groups * shape.channels;
        int64_t floats = planes * shape.height * shape.width * shape.lanes;
        return (int)std::max<int64_t>(1, std::min({planes, floats / LEAST_FLOATS, (int64_t)threads * 4}));
    }

    void run(int task, int tasks, const Call &call, float *) const override {
        Range planes((int64_t)shape.groups * shape.channels, task, tasks);
        for (int64_t i = planes.begin; i < planes.end; i++) {
            int64_t group = i / shape.channels, channel = i % shape.channels;
            if (shape.lanes == 1)
                work.template plane<float>(group, channel, call);
            else
                work.template plane<vec>(group, channel, call);
        }
    }

  private:
    fggp_tensor shape;
    Work work;
};

template <class Work> Operation *plane_wise(const fggp_tensor &shape, const Work &work) {
    return new PlaneWise<Work>(shape, work);
}

/* The part of a window's positions that lies within `size` pixels: first ≤ k < last. */
struct Window {
    int start, first, last;
    Window(int out, int kernel, int stride, int padding, int dilation, int size) : start(out * stride - padding) {
        first = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
        last = size <= start ? 0 : std::min(kernel, (size - start + dilation - 1) / dilation);
    }
};

struct MaxPool {
    fggp_pool pool;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(pool.in, group, channel), out(pool.out, group, channel);
        for (int y = 0; y < pool.out.height; y++) {
            Window rows(y, pool.kernel[0], pool.stride[0], pool.padding[0], pool.dilation[0], pool.in.height);
            for (int x = 0; x < pool.out.width; x++) {
                Window columns(x, pool.kernel[1], pool.stride[1], pool.padding[1], pool.dilation[1], pool.in.width);
                Pixel most = all<Pixel>(-INFINITY);
                for (int i = rows.first; i < rows.last; i++) {
                    const float *from = in.data + (rows.start + i * pool.dilation[0]) * in.row;
                    for (int j = columns.first; j < columns.last; j++)
                        most = larger(most, get<Pixel>(from + (columns.start + j * pool.dilation[1]) * L));
                }
                put(out.data + y * out.row + x * L, most);
            }
        }
    }
};

struct AveragePool {
    fggp_pool pool;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(pool.in, group, channel), out(pool.out, group, channel);
        for (int y = 0; y < pool.out.height; y++) {
            Window rows(y, pool.kernel[0], pool.stride[0], pool.padding[0], 1, pool.in.height);
            for (int x = 0; x < pool.out.width; x++) {
                Window columns(x, pool.kernel[1], pool.stride[1], pool.padding[1], 1, pool.in.width);
                Pixel sum{};
                for (int i = rows.first; i < rows.last; i++)
                    for (int j = columns.first; j < columns.last; j++)
                        sum += get<Pixel>(in.data + (rows.start + i) * in.row + (columns.start + j) * L);
                float count = (float)((rows.last - rows.first) * (columns.last - columns.first));
                if (pool.count_padding)
                    count = (float)(padded(rows, 0, pool.in.height) * padded(columns, 1, pool.in.width));
                if (pool.divisor != 0) count = pool.divisor;
                put(out.data + y * out.row + x * L, sum / all<Pixel>(count));
            }
        }
    }
    /* A window's size where the padding counts: it may still reach beyond the padding. */
    int padded(const Window &window, int axis, int size) const {
        return std::min(window.start + pool.kernel[axis], size + pool.padding[axis]) - window.start;
    }
};

struct AdaptiveAverage {
    fggp_tensor in_shape, out_shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(in_shape, group, channel), out(out_shape, group, channel);
        for (int y = 0; y < out_shape.height; y++) {
            int top = begin(y, in_shape.height, out_shape.height), bottom = end(y, in_shape.height, out_shape.height);
            for (int x = 0; x < out_shape.width; x++) {
                int left = begin(x, in_shape.width, out_shape.width), right = end(x, in_shape.width, out_shape.width);
                Pixel sum{};
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++) sum += get<Pixel>(in.data + i * in.row + j * L);
                put(out.data + y * out.row + x * L, sum / all<Pixel>((float)((bottom - top) * (right - left))));
            }
        }
    }
    static int begin(int i, int in, int out) { return (int)((int64_t)i * in / out); }
    static int end(int i, int in, int out) { return (int)(((int64_t)(i + 1) * in + out - 1) / out); }
};

struct Sum {
    fggp_tensor a_shape, b_shape, out_shape;
    bool relu;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        Plane a(a_shape, group, channel), b(b_shape, group, channel), out(out_shape, group, channel);
        for (int y = 0; y < out_shape.height; y++)
            for (int x = 0; x < out_shape.width; x++) {
                Pixel sum = get<Pixel>(a.data + y * a.row + x * L) + get<Pixel>(b.data + y * b.row + x * L);
                put(out.data + y * out.row + x * L, relu ? rectify(sum) : sum);
            }
    }
};

struct Affine {
    fggp_tensor in_shape, out_shape;
    const float *scale, *shift;
    bool relu;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(in_shape, group, channel), out(out_shape, group, channel);
        Pixel times = all<Pixel>(scale ? scale[channel] : 1), plus = all<Pixel>(shift ? shift[channel] : 0);
        for (int y = 0; y < out_shape.height; y++)
            for (int x = 0; x < out_shape.width; x++) {
                Pixel v = get<Pixel>(in.data + y * in.row + x * L);
                if (scale || shift) v = v * times + plus;
                put(out.data + y * out.row + x * L, relu ? rectify(v) : v);
            }
    }
};

struct Copy {
    fggp_tensor in_shape, out_shape;
    int32_t first;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        Plane in(in_shape, group, channel), out(out_shape, group, first + channel);
        for (int y = 0; y < in_shape.height; y++)
            std::copy_n(in.data + y * in.row, in_shape.width * lanes_of<Pixel>(), out.data + y * out.row);
    }
};

struct Flatten {
    fggp_tensor in_shape, out_shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(in_shape, group, channel);
        int64_t pixels = (int64_t)in_shape.height * in_shape.width;
        for (int y = 0; y < in_shape.height; y++)
            for (int x = 0; x < in_shape.width; x++) {
                Plane out(out_shape, group, channel * pixels + y * in_shape.width + x);
                put(out.data, get<Pixel>(in.data + y * in.row + x * L));
            }
    }
};

struct Unfold {
    fggp_pool pool;
    template <class Pixel> void plane(int64_t group, int64_t out_channel, const Call &) const {
        constexpr int L = lanes_of<Pixel>();
        int positions = pool.kernel[0] * pool.kernel[1];
        int64_t channel = out_channel / positions;
        int i = (int)(out_channel % positions) / pool.kernel[1], j = (int)(out_channel % positions) % pool.kernel[1];
        Plane in(pool.in, group, channel), out(pool.out, group, out_channel);
        for (int y = 0; y < pool.out.height; y++) {
            int from_y = y * pool.stride[0] - pool.padding[0] + i * pool.dilation[0];
            bool inside = from_y >= 0 && from_y < pool.in.height;
            for (int x = 0; x < pool.out.width; x++) {
                int from_x = x * pool.stride[1] - pool.padding[1] + j * pool.dilation[1];
                bool taken = inside && from_x >= 0 && from_x < pool.in.width;
                put(out.data + y * out.row + x * L, taken ? get<Pixel>(in.data + from_y * in.row + from_x * L) : Pixel{});
            }
        }
    }
};

/* The caller's side of one plane: the pixels of the images that share a group's lanes. */
struct Outside {
    float *data;
    int present; /* images */
    Outside(const Call &call, int32_t slot, const fggp_strides &strides, int64_t group, int64_t channel, int lanes)
        : data((float *)call.slots[slot] + group * lanes * strides.image + channel * strides.channel),
          present((int)std::max<int64_t>(0, std::min<int64_t>(lanes, call.images - group * lanes))) {}
};

struct Load {
    int32_t slot;
    fggp_strides strides;
    fggp_tensor shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &call) const {
        constexpr int L = lanes_of<Pixel>();
        Plane to(shape, group, channel);
        Outside from(call, slot, strides, group, channel, L);
        for (int y = 0; y < shape.height; y++)
            for (int x = 0; x < shape.width; x++)
                for (int lane = 0; lane < L; lane++)
                    to.data[y * to.row + x * L + lane] =
                        lane < from.present ? from.data[lane * strides.image + y * strides.row + x * strides.pixel] : 0;
    }
};

struct Store {
    int32_t slot;
    fggp_strides strides;
    fggp_tensor shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &call) const {
        constexpr int L = lanes_of<Pixel>();
        Plane from(shape, group, channel);
        Outside to(call, slot, strides, group, channel, L);
        for (int lane = 0; lane < to.present; lane++)
            for (int y = 0; y < shape.height; y++)
                for (int x = 0; x < shape.width; x++)
                    to.data[lane * strides.image + y * strides.row + x * strides.pixel] =
                        from.data[y * from.row + x * L + lane];
    }
};

} // namespace

Operation *new_max_pool(const fggp_pool &pool) { return plane_wise(pool.out, MaxPool{pool}); }
Operation *new_average_pool(const fggp_pool &pool) { return plane_wise(pool.out, AveragePool{pool}); }
Operation *new_adaptive_average(const fggp_tensor &in, const fggp_tensor &out) {
    return plane_wise(in, AdaptiveAverage{in, out});
}
Operation *new_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out, bool relu) {
    return plane_wise(out, Sum{a, b, out, relu});
}
Operation *new_affine(const fggp_tensor &in, const fggp_tensor &out, const float *scale, const float *shift,
                      bool relu) {
    return plane_wise(out, Affine{in, out, scale, shift, relu});
}
Operation *new_copy(const fggp_tensor &in, const fggp_tensor &out, int32_t first) {
    return plane_wise(in, Copy{in, out, first});
}
Operation *new_flatten(const fggp_tensor &in, const fggp_tensor &out) { return plane_wise(in, Flatten{in, out}); }
Operation *new_unfold(const fggp_pool &pool) { return plane_wise(pool.out, Unfold{pool}); }
Operation *new_load(int32_t slot, const fggp_strides &strides, const fggp_tensor &out) {
    return plane_wise(out, Load{slot, strides, out});
}
Operation *new_store(const fggp_tensor &in, int32_t slot, const fggp_strides &strides) {
    return plane_wise(in, Store{slot, strides, in});
}

} // namespace fggp
