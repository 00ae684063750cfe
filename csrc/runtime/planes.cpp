#include "runtime/planes.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "runtime/activations.h"
#include "runtime/tiles.h"

namespace fggp {
namespace {

/* With fewer floats, a task costs more to hand out than to run. */
constexpr int64_t MIN_FLOATS_PER_TASK = 4096;

/* A pixel is one float (single images), or a vector with the same pixel of several images. */
template <class Pixel> Pixel load_pixel(const float *p);
template <> float load_pixel<float>(const float *p) { return *p; }
template <> vec load_pixel<vec>(const float *p) { return load(p); }
void store_pixel(float *p, float v) { *p = v; }
void store_pixel(float *p, vec v) { store(p, v); }
float larger_of(float a, float b) { return (b > a) | (b != b) ? b : a; } /* NaN stays NaN; | avoids a branch */
vec larger_of(vec a, vec b) { return (b > a) | (b != b) ? b : a; }
template <class Pixel> Pixel broadcast(float x) { return x - Pixel{}; }

template <class Pixel> constexpr int lanes_of() { return sizeof(Pixel) / sizeof(float); }

/* A plane of one group and channel. */
struct Plane {
    float *data;
    int64_t row; /* floats from one row to the next */
    Plane(const fggp_tensor &t, int64_t group, int64_t channel)
        : data(t.data + (group * t.group + channel * t.plane) * t.lanes), row(t.row * t.lanes) {}
};

/* Base of operations without scratch memory. */
struct NoScratch {
    int64_t scratch() const { return 0; }
};

/* An operation that calls work.plane<Pixel>(group, channel, call, scratch) for each plane. */
template <class Work> class PlaneWise final : public Operation {
  public:
    PlaneWise(const fggp_tensor &shape, const Work &work) : shape(shape), work(work) {}

    int tasks(int threads) const override {
        int64_t planes = (int64_t)shape.groups * shape.channels;
        int64_t floats = planes * shape.height * shape.width * shape.lanes;
        return (int)std::max<int64_t>(1, std::min({planes, floats / MIN_FLOATS_PER_TASK, (int64_t)threads * 4}));
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

/* A window along one axis of `size` pixels: its first pixel, and the kernel positions k within the image: first ≤ k <
 * last. */
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

/* The `count` outputs along one axis, from `out` on, whose input at kernel position k is within the image; `in` is the
 * input of the first. */
struct Span {
    int out, in, count;
    Span(const fggp_pool &pool, int axis, int k) {
        int stride = pool.stride[axis], shift = k * pool.dilation[axis] - pool.padding[axis];
        int in_size = axis ? pool.in.width : pool.in.height, out_size = axis ? pool.out.width : pool.out.height;
        out = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
        in = out * stride + shift;
        int fitting = in_size <= in ? 0 : (in_size - in + stride - 1) / stride;
        count = std::max(0, std::min(out_size - out, fitting));
    }
};

/* Calls work with the stride, as a constant if it is 1 or 2, for which the compiler then generates vector code. */
template <class Work> void strided(int stride, const Work &work) {
    if (stride == 1)
        work(std::integral_constant<int, 1>());
    else if (stride == 2)
        work(std::integral_constant<int, 2>());
    else
        work(stride);
}

/* Pooling: first down the columns for a row of windows, which is vector code, then along the row. */
template <class Combine> struct Pool {
    Pool(const fggp_pool &pool, const Combine &combine)
        : pool(pool), combine(combine), rows(windows(pool, 0)), columns(windows(pool, 1)) {}

    int64_t scratch() const {
        if (pool.in.lanes > 1) return (int64_t)pool.in.width * pool.in.lanes;
        return std::max<int64_t>(pool.in.width, pool.out.height * padded_line());
    }

    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *line) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(pool.in, group, channel), out(pool.out, group, channel);
        int64_t floats = (int64_t)pool.in.width * L;
        if (L == 1 && pool.stride[1] <= 2)
            return pool.stride[1] == 1 ? single<1>(in, out, line) : single<2>(in, out, line);
        for (int y = 0; y < pool.out.height; y++) {
            const Window &down = rows[y];
            std::fill_n(line, floats, Combine::IDENTITY);
            for (int i = down.first; i < down.last; i++) {
                const float *from = in.data + (down.start + i * pool.dilation[0]) * in.row;
                for (int64_t k = 0; k < floats; k++) line[k] = combine(line[k], from[k]);
            }
            float *to = out.data + y * out.row;
            std::fill_n(to, pool.out.width * L, Combine::IDENTITY);
            for (int j = 0; j < pool.kernel[1]; j++) {
                Span span(pool, 1, j);
                strided(pool.stride[1], [&](auto stride) {
                    for (int x = 0; x < span.count; x++) {
                        Pixel more = load_pixel<Pixel>(line + (span.in + x * stride) * L);
                        float *here = to + (span.out + x) * L;
                        store_pixel(here, combine(load_pixel<Pixel>(here), more));
                    }
                });
            }
            for (int x = 0; x < pool.out.width; x++)
                store_pixel(to + x * L, combine.finish(load_pixel<Pixel>(to + x * L), down, columns[x]));
        }
    }

  private:
    /* The length of a line that has the padding on both sides, and is read in whole vectors. */
    int64_t padded_line() const {
        int64_t read = (pool.kernel[1] - 1) * pool.dilation[1] + (int64_t)(pool.out.width + LANES) * pool.stride[1];
        return std::max<int64_t>(pool.padding[1] + pool.in.width, read) + 2 * LANES;
    }

    /* A plane of a single image. All rows of windows are combined down before the first is combined along the row,
     * because what was just stored cannot be loaded at another offset at once. */
    template <int STRIDE> void single(const Plane &in, const Plane &out, float *lines) const {
        int64_t left = pool.padding[1], width = pool.in.width, all = padded_line();
        for (int y = 0; y < pool.out.height; y++) {
            const Window &down = rows[y];
            float *line = lines + y * all;
            std::fill_n(line, left, Combine::IDENTITY);
            for (int64_t x = 0; x < width; x += LANES) { /* beyond the row too */
                vec sum = splat(Combine::IDENTITY);
                for (int i = down.first; i < down.last; i++)
                    sum = combine(sum, load(in.data + (down.start + i * pool.dilation[0]) * in.row + x));
                store(line + left + x, sum);
            }
            std::fill(line + left + width, line + all, Combine::IDENTITY);
        }
        for (int y = 0; y < pool.out.height; y++) {
            const float *line = lines + y * all;
            float *to = out.data + y * out.row;
            for (int64_t x = 0; x < pool.out.width; x += LANES) {
                vec sum = splat(Combine::IDENTITY);
                for (int j = 0; j < pool.kernel[1]; j++) {
                    const float *from = line + x * STRIDE + j * pool.dilation[1];
                    sum = combine(sum, STRIDE == 1 ? load(from) : load_every_second(from));
                }
                store_first(to + x, sum, pool.out.width - x);
            }
            if (Combine::FINISHES)
                for (int x = 0; x < pool.out.width; x++) to[x] = combine.finish(to[x], rows[y], columns[x]);
        }
    }

    fggp_pool pool;
    Combine combine;
    std::vector<Window> rows, columns;
};

struct Maximum {
    static constexpr bool FINISHES = false;
    static constexpr float IDENTITY = -INFINITY;
    template <class Pixel> Pixel operator()(Pixel a, Pixel b) const { return larger_of(a, b); }
    template <class Pixel> Pixel finish(Pixel most, const Window &, const Window &) const { return most; }
};

struct Mean {
    static constexpr bool FINISHES = true;
    static constexpr float IDENTITY = 0;
    fggp_pool pool;
    template <class Pixel> Pixel operator()(Pixel a, Pixel b) const { return a + b; }
    template <class Pixel> Pixel finish(Pixel sum, const Window &down, const Window &across) const {
        float count = (float)(down.count() * across.count());
        if (pool.count_padding)
            count = (float)(padded(down, 0, pool.in.height) * padded(across, 1, pool.in.width));
        if (pool.divisor != 0) count = pool.divisor;
        return sum / broadcast<Pixel>(count);
    }
    /* A window's size if padding counts. The part of a window beyond the padding does not count. */
    int padded(const Window &window, int axis, int size) const {
        return std::min(window.start + pool.kernel[axis], size + pool.padding[axis]) - window.start;
    }
};

struct AdaptiveAverage : NoScratch {
    fggp_tensor in_shape, out_shape;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        constexpr int L = lanes_of<Pixel>();
        Plane in(in_shape, group, channel), out(out_shape, group, channel);
        if (L == 1 && out_shape.height * out_shape.width == 1) {
            out.data[0] = sum_of(in.data, (in_shape.height - 1) * in.row + in_shape.width) /
                          (float)(in_shape.height * in_shape.width);
            return;
        }
        for (int y = 0; y < out_shape.height; y++) {
            int top = begin(y, in_shape.height, out_shape.height), bottom = end(y, in_shape.height, out_shape.height);
            for (int x = 0; x < out_shape.width; x++) {
                int left = begin(x, in_shape.width, out_shape.width), right = end(x, in_shape.width, out_shape.width);
                Pixel sum{};
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++) sum += load_pixel<Pixel>(in.data + i * in.row + j * L);
                Pixel count = broadcast<Pixel>((float)((bottom - top) * (right - left)));
                store_pixel(out.data + y * out.row + x * L, sum / count);
            }
        }
    }
    /* The sum of a plane with the padding between its rows, which is zero. */
    static float sum_of(const float *data, int64_t floats) {
        vec sums[4] = {}; /* so that an addition need not wait for the previous one */
        int64_t i = 0;
        for (; i + 4 * LANES <= floats; i += 4 * LANES)
            for (int k = 0; k < 4; k++) sums[k] += load(data + i + k * LANES);
        for (; i + LANES <= floats; i += LANES) sums[0] += load(data + i);
        vec all = sums[0] + sums[1] + (sums[2] + sums[3]);
        float sum = 0;
        for (int k = 0; k < LANES; k++) sum += all[k];
        for (; i < floats; i++) sum += data[i];
        return sum;
    }
    static int begin(int i, int in, int out) { return (int)((int64_t)i * in / out); }
    static int end(int i, int in, int out) { return (int)(((int64_t)(i + 1) * in + out - 1) / out); }
};

/* Calls result(y, x) for each vector of a plane, with x the offset in row y of its first float, and stores the
 * results after the activation. Single images: the last vector of a row reaches beyond it, but is not stored there. */
template <class Pixel, class Result>
void activated_plane(const Plane &out, const fggp_tensor &shape, const Activation &activation, const Result &result) {
    constexpr int L = lanes_of<Pixel>();
    int64_t floats = (int64_t)shape.width * L;
    for (int y = 0; y < shape.height; y++)
        for (int64_t x = 0; x < floats; x += LANES) {
            vec v = result(y, x);
            store_first(out.data + y * out.row + x, activation.clamps ? activation.clamped(v) : v, floats - x);
        }
    if (activation.follows) activation.apply_to_plane(out.data, shape.height, floats, out.row);
}

struct Sum : NoScratch {
    fggp_tensor a_shape, b_shape, out_shape;
    Activation activation;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        Plane a(a_shape, group, channel), b(b_shape, group, channel), out(out_shape, group, channel);
        activated_plane<Pixel>(out, out_shape, activation, [&](int64_t y, int64_t x) {
            return load(a.data + y * a.row + x) + load(b.data + y * b.row + x);
        });
    }
};

struct Gate : NoScratch {
    fggp_tensor in_shape, gate_shape, out_shape;
    Activation activation;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        Plane in(in_shape, group, channel), gate(gate_shape, group, channel), out(out_shape, group, channel);
        Pixel times = load_pixel<Pixel>(gate.data);
        activated_plane<Pixel>(out, out_shape, activation, [&](int64_t y, int64_t x) {
            return load(in.data + y * in.row + x) * times;
        });
    }
};

struct Affine : NoScratch {
    fggp_tensor in_shape, out_shape;
    const float *scale, *shift;
    Activation activation;
    template <class Pixel> void plane(int64_t group, int64_t channel, const Call &, float *) const {
        Plane in(in_shape, group, channel), out(out_shape, group, channel);
        vec times = splat(scale ? scale[channel] : 1), plus = splat(shift ? shift[channel] : 0);
        if (scale || shift)
            activated_plane<Pixel>(out, out_shape, activation, [&](int64_t y, int64_t x) {
                return load(in.data + y * in.row + x) * times + plus;
            });
        else
            activated_plane<Pixel>(out, out_shape, activation,
                                   [&](int64_t y, int64_t x) { return load(in.data + y * in.row + x); });
    }
};

struct Copy : NoScratch {
    fggp_tensor in_shape, out_shape;
    const int32_t *pairs;
    bool same_padding;
    template <class Pixel> void plane(int64_t group, int64_t pair, const Call &, float *) const {
        Plane in(in_shape, group, pairs[2 * pair]), out(out_shape, group, pairs[2 * pair + 1]);
        if (in.row == out.row && same_padding) { /* with the padding between the rows */
            std::copy_n(in.data, (in_shape.height - 1) * in.row + in_shape.width * lanes_of<Pixel>(), out.data);
            return;
        }
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
                store_pixel(out.data, load_pixel<Pixel>(in.data + y * in.row + x * L));
            }
    }
};

struct Unfold : NoScratch {
    fggp_pool pool;
    uint8_t padding;
    template <class Pixel> void plane(int64_t group, int64_t out_channel, const Call &, float *) const {
        constexpr int L = lanes_of<Pixel>();
        int positions = pool.kernel[0] * pool.kernel[1];
        int64_t channel = out_channel / positions;
        int i = (int)(out_channel % positions) / pool.kernel[1], j = (int)(out_channel % positions) % pool.kernel[1];
        Plane in(pool.in, group, channel), out(pool.out, group, out_channel);
        Span rows(pool, 0, i), columns(pool, 1, j);
        for (int y = 0; y < pool.out.height; y++) {
            float *to = out.data + y * out.row;
            memset(to, padding, (size_t)pool.out.width * L * sizeof(float));
            if (y < rows.out || y >= rows.out + rows.count) continue;
            const float *from = in.data + (rows.in + (y - rows.out) * pool.stride[0]) * in.row + columns.in * L;
            strided(pool.stride[1], [&](auto stride) {
                for (int x = 0; x < columns.count; x++)
                    store_pixel(to + (columns.out + x) * L, load_pixel<Pixel>(from + x * stride * L));
            });
        }
    }
};

} // namespace

Operation *new_max_pool(const fggp_pool &pool) { return plane_wise(pool.out, Pool<Maximum>(pool, {})); }
Operation *new_average_pool(const fggp_pool &pool) { return plane_wise(pool.out, Pool<Mean>(pool, {pool})); }
Operation *new_adaptive_average(const fggp_tensor &in, const fggp_tensor &out) {
    return plane_wise(in, AdaptiveAverage{{}, in, out});
}
Operation *new_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out,
                   const fggp_activation &activation) {
    return plane_wise(out, Sum{{}, a, b, out, Activation(activation)});
}
Operation *new_gate(const fggp_tensor &in, const fggp_tensor &gate, const fggp_tensor &out,
                    const fggp_activation &activation) {
    return plane_wise(out, Gate{{}, in, gate, out, Activation(activation)});
}
Operation *new_affine(const fggp_tensor &in, const fggp_tensor &out, const float *scale, const float *shift,
                      const fggp_activation &activation) {
    return plane_wise(out, Affine{{}, in, out, scale, shift, Activation(activation)});
}
Operation *new_copy(const fggp_tensor &in, const fggp_tensor &out, const int32_t *pairs, int32_t count,
                    bool same_padding) {
    fggp_tensor copied = in;
    copied.channels = count;
    return plane_wise(copied, Copy{{}, in, out, pairs, same_padding});
}
Operation *new_flatten(const fggp_tensor &in, const fggp_tensor &out) { return plane_wise(in, Flatten{{}, in, out}); }
Operation *new_unfold(const fggp_pool &pool, uint8_t padding) {
    return plane_wise(pool.out, Unfold{{}, pool, padding});
}

} // namespace fggp
