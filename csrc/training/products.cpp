#include "training/products.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "threads/parallel.h"
#include "training/numbers.h"

namespace fggp {
namespace {

/* Sums of weight gradients of several packs are added up in so many places, whatever the number of threads, so that
 * results do not depend on it. */
constexpr int MOST_SLOTS = 16;
constexpr int TASKS_PER_THREAD = 3;
/* With fewer output channels, a task is not worth packing its input again. */
constexpr int MIN_CHANNELS_PER_TASK = 8;

/* One band of one pack. */
struct Part {
    int64_t image, images; /* the first, and how many there are */
    int row, rows;         /* of each grid */
};

/* A pixel of a grid: where it reads, in floats in the pack, and where it is in the output, in numbers. */
struct Pixel {
    int32_t in;
    int64_t out;
};

/* The division of a direction's work. */
class Division {
  public:
    Division(const Direction &direction, int64_t images)
        : direction(direction), images(images), wide(direction.vectors * LANES), packs((images + wide - 1) / wide),
          bands((direction.grids[0].size[0] + direction.band - 1) / direction.band) {}

    int64_t parts() const { return packs * bands; }
    Part part(int64_t index) const {
        Part part;
        part.image = index / bands * wide;
        part.images = std::min<int64_t>(wide, images - part.image);
        part.row = (int)(index % bands) * direction.band;
        part.rows = std::min(direction.band, direction.grids[0].size[0] - part.row);
        return part;
    }
    /* In how many tasks the output channels of a part are divided. */
    int64_t channel_tasks(int64_t tasks, int channels, int threads) const {
        const int64_t wanted = ((int64_t)threads * TASKS_PER_THREAD + tasks - 1) / tasks;
        return threads == 1 ? 1 : std::max<int64_t>(1, std::min<int64_t>(wanted, channels / MIN_CHANNELS_PER_TASK));
    }
    int64_t pack_floats() const { return (int64_t)direction.in.channels * direction.plane * wide; }

    template <class Number> void pack(const Number *x, const Part &part, float *to) const {
        const Reading &in = direction.in;
        for (int channel = 0; channel < in.channels; channel++)
            for (int r = 0; r < direction.plane / direction.row; r++) {
                const int row = part.row * in.stride[0] + in.first[0] + r;
                float *out = to + ((int64_t)channel * direction.plane + r * direction.row) * wide;
                const int begin = std::max(0, -in.first[1]), end = std::min(direction.row, in.size[1] - in.first[1]);
                if (row < 0 || row >= in.size[0] || begin >= end) {
                    std::fill_n(out, direction.row * wide, 0.0f);
                    continue;
                }
                const Number *from = x + ((int64_t)(channel * (int64_t)in.size[0] + row) * in.size[1] + in.first[1]) * images + part.image;
                std::fill_n(out, begin * wide, 0.0f);
                for (int column = begin; column < end; column++)
                    for (int v = 0; v < direction.vectors; v++)
                        store(out + column * wide + v * LANES, load_some(from + column * images + v * LANES, part.images - v * LANES));
                std::fill_n(out + end * wide, (direction.row - end) * wide, 0.0f);
            }
    }

    std::vector<Pixel> pixels(const Grid &grid, const Part &part) const {
        std::vector<Pixel> all;
        const int rows = std::min(part.row + part.rows, grid.size[0]) - part.row;
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < grid.size[1]; j++) {
                const int64_t y = grid.start[0] + (int64_t)(part.row + i) * direction.step[0];
                const int64_t x = grid.start[1] + (int64_t)j * direction.step[1];
                const int32_t in = (i * direction.in.stride[0] * direction.row + j * direction.in.stride[1]) * wide;
                all.push_back({in, (y * direction.size[1] + x) * images + part.image});
            }
        return all;
    }

    int64_t plane() const { return (int64_t)direction.size[0] * direction.size[1] * images; }

  private:
    const Direction &direction;
    int64_t images;

  public:
    const int wide; /* images in a pack */
    const int64_t packs, bands;
};

/* Calls use(P, pixels) for tiles of pixels whose sums fit the registers: as many as possible, then fewer. */
template <int VECTORS, class Use> void for_each_tile(const std::vector<Pixel> &pixels, const Use &use) {
    constexpr int MOST = std::max(1, REGISTERS / VECTORS);
    size_t i = 0;
    auto all_of = [&](auto size) {
        if constexpr (decltype(size)::value <= MOST)
            for (; pixels.size() - i >= decltype(size)::value; i += decltype(size)::value) use(size, &pixels[i]);
    };
    all_of(std::integral_constant<size_t, MOST>{});
    all_of(std::integral_constant<size_t, 4>{});
    all_of(std::integral_constant<size_t, 2>{});
    all_of(std::integral_constant<size_t, 1>{});
}

/* The output channels of one of some tasks. */
struct Channels {
    int first, last;
    Channels(int64_t channels, int64_t task, int64_t tasks)
        : first((int)(channels * task / tasks)), last((int)(channels * (task + 1) / tasks)) {}
};

/* Calls use(vectors) with the number of vectors in a pack as a constant. */
template <class Use> void with_vectors(const Direction &direction, const Use &use) {
    if (direction.vectors == 8) use(std::integral_constant<int, 8>{});
    else if (direction.vectors == 4) use(std::integral_constant<int, 4>{});
    else use(std::integral_constant<int, 2>{});
}

/* The values of a grid's weights in the order of its taps. */
std::vector<std::vector<float>> gathered(const Direction &direction, const float *weight) {
    std::vector<std::vector<float>> all;
    for (const Grid &grid : direction.grids) {
        all.emplace_back(grid.taps.size());
        for (size_t i = 0; i < grid.taps.size(); i++) all.back()[i] = weight[grid.taps[i].weight];
    }
    return all;
}

/* y, or the gradient of x. */
template <class Number> class Sums {
  public:
    Sums(const Direction &direction, const float *weight, const float *bias, const Number *x, int64_t images, int threads, Number *y)
        : direction(direction), division(direction, images), bias(bias), x(x), y(y), values(gathered(direction, weight)),
          channel_tasks(division.channel_tasks(division.parts(), direction.channels, threads)) {
        tasks = division.parts() * channel_tasks;
    }
    void work() {
        std::vector<float> pack(division.pack_floats());
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const Part part = division.part(task / channel_tasks);
            division.pack(x, part, pack.data());
            const Channels channels(direction.channels, task % channel_tasks, channel_tasks);
            for (size_t g = 0; g < direction.grids.size(); g++) {
                const Grid &grid = direction.grids[g];
                const auto pixels = division.pixels(grid, part);
                with_vectors(direction, [&](auto vectors) {
                    write<decltype(vectors)::value>(grid, values[g].data(), pixels, part, pack.data(), channels);
                });
            }
        }
    }
    int64_t tasks;

  private:
    template <int VECTORS>
    void write(const Grid &grid, const float *values, const std::vector<Pixel> &pixels, const Part &part, const float *pack,
               Channels channels) {
        for (int channel = channels.first; channel < channels.last; channel++) {
            const Tap *begin = grid.taps.data() + grid.starts[channel], *end = grid.taps.data() + grid.starts[channel + 1];
            const float *value = values + grid.starts[channel];
            Number *out = y + channel * division.plane();
            for_each_tile<VECTORS>(pixels, [&](auto size, const Pixel *pixel) {
                constexpr int P = decltype(size)::value;
                vec sums[P][VECTORS];
                const float *from[P];
#pragma GCC unroll 16
                for (int p = 0; p < P; p++) {
                    from[p] = pack + pixel[p].in;
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; v++) sums[p][v] = splat(bias ? bias[channel] : 0);
                }
                for (const Tap *tap = begin; tap < end; tap++) {
                    const vec weight = splat(value[tap - begin]);
                    const int64_t offset = tap->offset;
#pragma GCC unroll 16
                    for (int p = 0; p < P; p++)
#pragma GCC unroll 8
                        for (int v = 0; v < VECTORS; v++) sums[p][v] += weight * load(from[p] + offset + v * LANES);
                }
#pragma GCC unroll 16
                for (int p = 0; p < P; p++)
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; v++)
                        store_some(out + pixel[p].out + v * LANES, sums[p][v], part.images - v * LANES);
            });
        }
    }

    const Direction &direction;
    const Division division;
    const float *bias;
    const Number *x;
    Number *y;
    const std::vector<std::vector<float>> values;
    const int64_t channel_tasks;
    std::atomic<int64_t> next{0};
};

/* The gradients of the active weights: for each, the sum over images and output pixels of the output's gradient times the
 * number that the weight multiplies there. */
template <class Number> class WeightGradient {
  public:
    WeightGradient(const Direction &direction, const Number *x, const Number *dy, int64_t images, int threads)
        : direction(direction), grid(direction.grids[0]), division(direction, images), x(x), dy(dy),
          slots(std::min<int64_t>(division.parts(), MOST_SLOTS)), sums(slots, std::vector<float>(grid.taps.size())),
          channel_tasks(division.channel_tasks(slots, direction.channels, threads)) {
        tasks = slots * channel_tasks;
        for (int channel = 0; channel < direction.channels; channel++)
            most_taps = std::max(most_taps, grid.starts[channel + 1] - grid.starts[channel]);
    }
    void work() {
        std::vector<float> pack(division.pack_floats()), vectors(most_taps * LANES);
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const int64_t slot = task / channel_tasks;
            const Channels channels(direction.channels, task % channel_tasks, channel_tasks);
            for (int64_t i = slot; i < division.parts(); i += slots) {
                const Part part = division.part(i);
                division.pack(x, part, pack.data());
                const auto pixels = division.pixels(grid, part);
                float *to = sums[slot].data();
                with_vectors(direction, [&](auto count) {
                    add<decltype(count)::value>(pixels, part, pack.data(), vectors.data(), to, channels);
                });
            }
        }
    }
    void scatter(float *dw) const {
        for (size_t i = 0; i < grid.taps.size(); i++) {
            float sum = 0;
            for (const auto &slot : sums) sum += slot[i];
            dw[grid.taps[i].weight] = sum;
        }
    }
    int64_t tasks;

  private:
    template <int VECTORS>
    void add(const std::vector<Pixel> &pixels, const Part &part, const float *pack, float *vectors, float *to, Channels channels) {
        for (int channel = channels.first; channel < channels.last; channel++) {
            const Tap *taps = grid.taps.data() + grid.starts[channel];
            const int64_t count = grid.starts[channel + 1] - grid.starts[channel];
            const Number *from = dy + channel * division.plane();
            std::fill_n(vectors, count * LANES, 0.0f);
            for_each_tile<VECTORS>(pixels, [&](auto size, const Pixel *pixel) {
                constexpr int P = decltype(size)::value;
                vec gradient[P][VECTORS];
                const float *at[P];
#pragma GCC unroll 16
                for (int p = 0; p < P; p++) {
                    at[p] = pack + pixel[p].in;
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; v++)
                        gradient[p][v] = load_some(from + pixel[p].out + v * LANES, part.images - v * LANES);
                }
                for (int64_t k = 0; k < count; k++) {
                    const int64_t offset = taps[k].offset;
                    vec sum[2] = {load(vectors + k * LANES), vec{}};
#pragma GCC unroll 16
                    for (int p = 0; p < P; p++)
#pragma GCC unroll 8
                        for (int v = 0; v < VECTORS; v++) sum[v % 2] += gradient[p][v] * load(at[p] + offset + v * LANES);
                    store(vectors + k * LANES, sum[0] + sum[1]);
                }
            });
            for (int64_t k = 0; k < count; k++) to[grid.starts[channel] + k] += sum_of(load(vectors + k * LANES));
        }
    }

    const Direction &direction;
    const Grid &grid;
    const Division division;
    const Number *x, *dy;
    const int64_t slots;
    std::vector<std::vector<float>> sums;
    const int64_t channel_tasks;
    int64_t most_taps = 0;
    std::atomic<int64_t> next{0};
};

/* A thread that runs out of memory says so when all are done. */
template <class Task> void run(Task &task, int threads) {
    struct Shared {
        Task &task;
        std::atomic<int> failed{0};
    } shared{task};
    Work work = [](void *context, int, int) {
        auto &shared = *(Shared *)context;
        if (without_throwing([&] { shared.task.work(); })) shared.failed = 1;
    };
    run_on_threads(work, &shared, (int)std::min<int64_t>(threads, task.tasks));
    if (shared.failed) throw std::bad_alloc();
}

template <class Number>
void sums(const Direction &direction, const float *weight, const float *bias, const void *x, int64_t images, int threads, void *y) {
    Sums<Number> task(direction, weight, bias, (const Number *)x, images, threads, (Number *)y);
    run(task, threads);
}

template <class Number>
void weight_gradient(const Direction &direction, const void *x, const void *dy, int64_t images, int threads, float *dw) {
    WeightGradient<Number> task(direction, (const Number *)x, (const Number *)dy, images, threads);
    run(task, threads);
    task.scatter(dw);
}

} // namespace
} // namespace fggp

using namespace fggp;

int32_t fggp_products_forward(const fggp_products *products, const float *weight, const float *bias, const void *x, int32_t type,
                              int64_t images, int32_t threads, void *y) {
    auto run = type == FGGP_BFLOAT16 ? sums<bfloat16> : sums<float>;
    return without_throwing([&] { run(products->forward, weight, bias, x, images, threads, y); });
}

int32_t fggp_products_input_gradient(const fggp_products *products, const float *weight, const void *dy, int32_t type,
                                     int64_t images, int32_t threads, void *dx) {
    auto run = type == FGGP_BFLOAT16 ? sums<bfloat16> : sums<float>;
    return without_throwing([&] { run(products->backward, weight, nullptr, dy, images, threads, dx); });
}

int32_t fggp_products_weight_gradient(const fggp_products *products, const void *x, const void *dy, int32_t type, int64_t images,
                                      int32_t threads, float *dw) {
    auto run = type == FGGP_BFLOAT16 ? weight_gradient<bfloat16> : weight_gradient<float>;
    return without_throwing([&] { run(products->forward, x, dy, images, threads, dw); });
}
