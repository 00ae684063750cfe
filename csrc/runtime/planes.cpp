#include "runtime/planes.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "runtime/tiles.h"

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
float larger(float a, float b) { return (b > a) | (b != b) ? b : a; } /* NaN stays; | so that it is no branch */
vec larger(vec a, vec b) { return (b > a) | (b != b) ? b : a; }
template <class Pixel> Pixel pixel_of(float x) { return x - Pixel{}; }

template <class Pixel> constexpr int lanes_of() { return sizeof(Pixel) / sizeof(float); }

/* A plane of one group and channel. */
struct Plane {
    float *data;
    int64_t row; /* floats from one row to the next */
    Plane(const fggp_tensor &t, int64_t group, int64_t channel)
        : data(t.data + (group * t.group + channel * t.plane) * t.lanes), row(t.row * t.lanes) {}
};

/* What most such work needs of scratch memory. */
struct NoScratch {
    int64_t scratch() const { return 0; }
};

/* Calls work.plane<Pixel>(group, channel, call, scratch) for each plane. */
template <class Work> class PlaneWise final : public Operation {
  public:
    PlaneWise(const fggp_tensor &shape, const Work &work) : shape(shape), work(work) {}

    int tasks(int threads) const override {
        int64_t planes = (int64_t)shape.groups * shape.channels;
        int64_t floats = planes * shape.height * shape.width * shape.lanes;
        return (int)std::max<int64_t>(1, std::min({planes, floats / LEAST_FLOATS, (int64_t)threads * 4}));
    }

    int64_t scratch() const override { return work.scratch(); }

    void run(int task, int tasks, const Call &call, float *scratch) const override {
        Range planes((int64_t)shape.groups * shape.channels, task, tasks);
        for (int64_t i = planes.begin; i < planes.end; i++) {
            int64_t group = i / shape.channels, channel = i % shape.channels;
            if (shape.lanes == 1)
                work.template plane<float>(group, channel, call, scratch);
            else
                work.template plane<vec>(group, channel, call, scratch);
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
    int count() const { return std::max(0, last - first); }
};

/* The windows along one axis (0: rows, 1: columns), one for each output pixel. */
std::vector<Window> windows(const fggp_pool &pool, int axis) {
    std::vector<Window> all;
    int in = axis ? pool.in.width : pool.in.height, out = axis ? pool.out.width : pool.out.height;
    for (int i = 0; i < out; i++)
        all.emplace_back(i, pool.kernel[axis], pool.stride[axis], pool.padding[axis], pool.dilation[axis], in);
    return all;
}

/* The outputs along one axis for which kernel position k lies within the image, and where it lies for the first one. */
struct Span {
    int out, in, count;
    Span(const fggp_pool &pool, int axis, int k) {
        int stride = pool.stride[axis], shift = k * pool.dilation[axis] - pool.padding[axis];
        int in_size = axis ? pool.in.width : pool.in.height, out_size = axis ? pool.out.width : pool.out.height;
        out = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
        in = out * stride + shift;
        int room = in_size <= in ? 0 : (in_size - in + stride - 1) / stride;
        count = std::max(0, std::min(out_size - out, room));
    }
};

/* Calls work with the stride, as a constant where it is a usual one: then the compiler can use vectors. */
template <class Work> void strided(int stride, const Work &work) {
    if (stride == 1)
        work(std::integral_constant<int, 1>());
    else if (stride == 2)
        work(std::integral_constant<int, 2>());
    else
        work(stride);
}

/* Pools down the columns of a row of windows first, which vectors can do, then along it. */
template <class Combine> struct Pool {
    Pool(const fggp_pool &pool, const Combine &combine)
        : pool(pool), combine(combine), rows(windows(pool, 0)), columns(windows(pool, 1)) {}

    int64_t scratch() const { return (int64_t)pool.in.width * pool.in.lanes; }

    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *line) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(pool.in, group, channel), out(pool.out, group, channel);
        for (int y = 0; y < pool.out.height; y++) {
            const Window &down = rows[y];
            std::fill_n(line, scratch(), Combine::NOTHING);
            for (int i = down.first; i < down.last; i++) {
                const float *from = in.data + (down.start + i * pool.dilation[0]) * in.row;
                for (int64_t k = 0; k < scratch(); k++) line[k] = combine(line[k], from[k]);
            }
            float *to = out.data + y * out.row;
            std::fill_n(to, pool.out.width * L, Combine::NOTHING);
            for (int j = 0; j < pool.kernel[1]; j++) {
                Span span(pool, 1, j);
                strided(pool.stride[1], [&](auto stride) {
                    for (int x = 0; x < span.count; x++) {
                        Pixel more = get<Pixel>(line + (span.in + x * stride) * L);
                        float *here = to + (span.out + x) * L;
                        put(here, combine(get<Pixel>(here), more));
                    }
                });
            }
            for (int x = 0; x < pool.out.width; x++)
                put(to + x * L, combine.finish(get<Pixel>(to + x * L), down, columns[x]));
        }
    }

    fggp_pool pool;
    Combine combine;
    std::vector<Window> rows, columns;
};

struct Largest {
    static constexpr float NOTHING = -INFINITY;
    template <class Pixel> Pixel operator()(Pixel a, Pixel b) const { return larger(a, b); }
    template <class Pixel> Pixel finish(Pixel most, const Window &, const Window &) const { return most; }
};

struct Mean {
    static constexpr float NOTHING = 0;
    fggp_pool pool;
    template <class Pixel> Pixel operator()(Pixel a, Pixel b) const { return a + b; }
    template <class Pixel> Pixel finish(Pixel sum, const Window &down, const Window &across) const {
        float count = (float)(down.count() * across.count());
        if (pool.count_padding)
            count = (float)(padded(down, 0, pool.in.height) * padded(across, 1, pool.in.width));
        if (pool.divisor != 0) count = pool.divisor;
        return sum / pixel_of<Pixel>(count);
    }
    /* A window's size where the padding counts: it may still reach beyond the padding. */
    int padded(const Window &window, int axis, int size) const {
        return std::min(window.start + pool.kernel[axis], size + pool.padding[axis]) - window.start;
    }
};

struct AdaptiveAverage : NoScratch {
    fggp_tensor in_shape, out_shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(in_shape, group, channel), out(out_shape, group, channel);
        for (int y = 0; y < out_shape.height; y++) {
            int top = begin(y, in_shape.height, out_shape.height), bottom = end(y, in_shape.height, out_shape.height);
            for (int x = 0; x < out_shape.width; x++) {
                int left = begin(x, in_shape.width, out_shape.width), right = end(x, in_shape.width, out_shape.width);
                Pixel sum{};
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++) sum += get<Pixel>(in.data + i * in.row + j * L);
                put(out.data + y * out.row + x * L, sum / pixel_of<Pixel>((float)((bottom - top) * (right - left))));
            }
        }
    }
    static int begin(int i, int in, int out) { return (int)((int64_t)i * in / out); }
    static int end(int i, int in, int out) { return (int)(((int64_t)(i + 1) * in + out - 1) / out); }
};

struct Sum : NoScratch {
    fggp_tensor a_shape, b_shape, out_shape;
    bool relu;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        constexpr int L = lanes_of<Pixel>();
        Plane a(a_shape, group, channel), b(b_shape, group, channel), out(out_shape, group, channel);
        for (int y = 0; y < out_shape.height; y++)
            for (int x = 0; x < out_shape.width; x++) {
                Pixel sum = get<Pixel>(a.data + y * a.row + x * L) + get<Pixel>(b.data + y * b.row + x * L);
                put(out.data + y * out.row + x * L, relu ? rectify(sum) : sum);
            }
    }
};

struct Affine : NoScratch {
    fggp_tensor in_shape, out_shape;
    const float *scale, *shift;
    bool relu;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(in_shape, group, channel), out(out_shape, group, channel);
        Pixel times = pixel_of<Pixel>(scale ? scale[channel] : 1), plus = pixel_of<Pixel>(shift ? shift[channel] : 0);
        for (int y = 0; y < out_shape.height; y++)
            for (int x = 0; x < out_shape.width; x++) {
                Pixel v = get<Pixel>(in.data + y * in.row + x * L);
                if (scale || shift) v = v * times + plus;
                put(out.data + y * out.row + x * L, relu ? rectify(v) : v);
            }
    }
};

struct Copy : NoScratch {
    fggp_tensor in_shape, out_shape;
    int32_t first;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        Plane in(in_shape, group, channel), out(out_shape, group, first + channel);
        for (int y = 0; y < in_shape.height; y++)
            std::copy_n(in.data + y * in.row, in_shape.width * lanes_of<Pixel>(), out.data + y * out.row);
    }
};

struct Flatten : NoScratch {
    fggp_tensor in_shape, out_shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
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

struct Unfold : NoScratch {
    fggp_pool pool;
    template <class Pixel> void plane(int64_t group, int64_t out_channel, const Call &, float *) const {
        constexpr int L = lanes_of<Pixel>();
        int positions = pool.kernel[0] * pool.kernel[1];
        int64_t channel = out_channel / positions;
        int i = (int)(out_channel % positions) / pool.kernel[1], j = (int)(out_channel % positions) % pool.kernel[1];
        Plane in(pool.in, group, channel), out(pool.out, group, out_channel);
        Span rows(pool, 0, i), columns(pool, 1, j);
        for (int y = 0; y < pool.out.height; y++) {
            float *to = out.data + y * out.row;
            std::fill_n(to, pool.out.width * L, 0.0f);
            if (y < rows.out || y >= rows.out + rows.count) continue;
            const float *from = in.data + (rows.in + (y - rows.out) * pool.stride[0]) * in.row + columns.in * L;
            strided(pool.stride[1], [&](auto stride) {
                for (int x = 0; x < columns.count; x++)
                    put(to + (columns.out + x) * L, get<Pixel>(from + x * stride * L));
            });
        }
    }
};

} // namespace

Operation *new_max_pool(const fggp_pool &pool) { return plane_wise(pool.out, Pool<Largest>(pool, {})); }
Operation *new_average_pool(const fggp_pool &pool) { return plane_wise(pool.out, Pool<Mean>(pool, {pool})); }
Operation *new_adaptive_average(const fggp_tensor &in, const fggp_tensor &out) {
    return plane_wise(in, AdaptiveAverage{{}, in, out});
}
Operation *new_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out, bool relu) {
    return plane_wise(out, Sum{{}, a, b, out, relu});
}
Operation *new_affine(const fggp_tensor &in, const fggp_tensor &out, const float *scale, const float *shift,
                      bool relu) {
    return plane_wise(out, Affine{{}, in, out, scale, shift, relu});
}
Operation *new_copy(const fggp_tensor &in, const fggp_tensor &out, int32_t first) {
    return plane_wise(in, Copy{{}, in, out, first});
}
Operation *new_flatten(const fggp_tensor &in, const fggp_tensor &out) { return plane_wise(in, Flatten{{}, in, out}); }
Operation *new_unfold(const fggp_pool &pool) { return plane_wise(pool.out, Unfold{{}, pool}); }

} // namespace fggp
