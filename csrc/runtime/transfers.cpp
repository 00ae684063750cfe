#include "runtime/transfers.h"

#include <algorithm>
#include <type_traits>

#include "runtime/tiles.h"

namespace fggp {
namespace {

/* Channels that are copied together if the caller's channels are adjacent: one cache line of floats. */
constexpr int CHANNELS_PER_BLOCK = 16;
/* With fewer floats, a task costs more to hand out than to run. */
constexpr int64_t MIN_FLOATS_PER_TASK = 8192;

/* Exchange what differs in bit S of row and column, in a square of vectors. */
template <int S, int... I> void exchange(vec *rows, std::integer_sequence<int, I...>) {
    for (int i = 0; i < LANES; i++) {
        if (i & S) continue;
        vec a = rows[i], b = rows[i + S];
#if defined(__clang__) || __GNUC__ >= 12
        rows[i] = __builtin_shufflevector(a, b, (I & S ? LANES + I - S : I)...);
        rows[i + S] = __builtin_shufflevector(a, b, (I & S ? LANES + I : I + S)...);
#else
        rows[i] = __builtin_shuffle(a, b, ivec{(I & S ? LANES + I - S : I)...});
        rows[i + S] = __builtin_shuffle(a, b, ivec{(I & S ? LANES + I : I + S)...});
#endif
    }
}
template <int S = 1> void transpose(vec *rows) {
    exchange<S>(rows, std::make_integer_sequence<int, LANES>());
    if constexpr (2 * S < LANES) transpose<2 * S>(rows);
}

/* The direction of a copy. */
struct Load {
    static void move(float &activation, float &caller) { activation = caller; }
};
struct Store {
    static void move(float &activation, float &caller) { caller = activation; }
};

template <class Direction> class Transfer final : public Operation {
  public:
    Transfer(const fggp_tensor &activation, int32_t slot, const fggp_strides &strides, int32_t images)
        : activation(activation), slot(slot), strides(strides), images(images) {
        block_channels = strides.channel == 1 && strides.pixel > 1 ? CHANNELS_PER_BLOCK : 1;
        blocks = (activation.channels + block_channels - 1) / block_channels;
        /* Without padding, a plane is one long row. */
        bool flat = activation.row == activation.width && strides.row == activation.width * strides.pixel;
        height = flat ? 1 : activation.height;
        width = flat ? (int64_t)activation.height * activation.width : activation.width;
    }

    int tasks(int threads) const override {
        int64_t pixels = (int64_t)activation.groups * activation.channels * activation.height * activation.width;
        int64_t floats = pixels * activation.lanes;
        int64_t all = activation.groups * blocks;
        return (int)std::max<int64_t>(1, std::min({all, floats / MIN_FLOATS_PER_TASK, (int64_t)threads * 4}));
    }

    void run(int task, int tasks, const Call &call, float *) const override {
        Range range(activation.groups * blocks, task, tasks);
        for (int64_t i = range.begin; i < range.end; i++) {
            int64_t group = i / blocks, first = i % blocks * block_channels;
            float *a = activation.data + (group * activation.group + first * activation.plane) * activation.lanes;
            float *b = (float *)call.slots[slot] + group * activation.lanes * strides.image + first * strides.channel;
            int64_t channels = std::min<int64_t>(block_channels, activation.channels - first);
            int64_t present = std::min(call.images, images) - group * LANES; /* of a group's images */
            present = std::max<int64_t>(0, std::min<int64_t>(LANES, present));
            for (int64_t y = 0; y < height; y++) {
                float *row = a + y * activation.row * activation.lanes, *caller_row = b + y * strides.row;
                if (activation.lanes > 1)
                    block_channels > 1 ? group_channels(row, caller_row, channels, present)
                                       : group_pixels(row, caller_row, present);
                else if (block_channels > 1)
                    single_channels(row, caller_row, channels);
                else
                    for (int64_t x = 0; x < width; x++) Direction::move(row[x], caller_row[x]);
            }
        }
    }

  private:
    /* Copy a square, whose rows in the activation are its columns in the caller's tensor. */
    static void square(float *a, int64_t a_row, float *b, int64_t b_row) {
        constexpr bool LOADS = std::is_same<Direction, Load>::value;
        float *from = LOADS ? b : a, *to = LOADS ? a : b;
        int64_t from_row = LOADS ? b_row : a_row, to_row = LOADS ? a_row : b_row;
        vec rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = load(from + i * from_row);
        transpose(rows);
        for (int i = 0; i < LANES; i++) store(to + i * to_row, rows[i]);
    }

    /* A row of a few adjacent channels of a single image. */
    void single_channels(float *a, float *b, int64_t channels) const {
        for (int64_t x = 0; x < width; x += LANES)
            for (int64_t c = 0; c < channels; c += LANES) {
                int64_t across = std::min<int64_t>(LANES, width - x), deep = std::min<int64_t>(LANES, channels - c);
                float *from = a + c * activation.plane + x, *caller = b + x * strides.pixel + c;
                if (across == LANES && deep == LANES) {
                    square(from, activation.plane, caller, strides.pixel);
                    continue;
                }
                for (int64_t i = 0; i < across; i++)
                    for (int64_t k = 0; k < deep; k++)
                        Direction::move(from[k * activation.plane + i], caller[i * strides.pixel + k]);
            }
    }

    /* A row of one channel of a group of images. */
    void group_pixels(float *a, float *b, int64_t present) const {
        int64_t x = 0;
        if (present == LANES && strides.pixel == 1)
            for (; x + LANES <= width; x += LANES) square(a + x * LANES, LANES, b + x, strides.image);
        for (; x < width; x++) group_pixel(a + x * LANES, b + x * strides.pixel, present);
    }

    /* A row of a few adjacent channels of a group of images. */
    void group_channels(float *a, float *b, int64_t channels, int64_t present) const {
        int64_t plane = activation.plane * LANES;
        for (int64_t x = 0; x < width; x++) {
            int64_t c = 0;
            float *pixel = a + x * LANES, *caller = b + x * strides.pixel;
            if (present == LANES)
                for (; c + LANES <= channels; c += LANES) square(pixel + c * plane, plane, caller + c, strides.image);
            for (; c < channels; c++) group_pixel(pixel + c * plane, caller + c, present);
        }
    }

    /* A pixel of a group. A load fills the lanes of missing images with zeros; a store skips them. */
    void group_pixel(float *pixel, float *caller, int64_t present) const {
        for (int64_t lane = 0; lane < present; lane++) Direction::move(pixel[lane], caller[lane * strides.image]);
        if (std::is_same<Direction, Load>::value) std::fill(pixel + present, pixel + LANES, 0.0f);
    }

    fggp_tensor activation;
    int32_t slot;
    fggp_strides strides;
    int32_t images;
    int64_t block_channels; /* copied together */
    int64_t blocks;         /* of channels, in a group */
    int64_t height, width;  /* of a plane as it is copied */
};

class CopyIn final : public Operation {
  public:
    CopyIn(int32_t slot, void *to, int64_t bytes) : slot(slot), to((char *)to), bytes(bytes) {}

    int tasks(int threads) const override {
        return (int)std::max<int64_t>(1, std::min<int64_t>(bytes / (4 * MIN_FLOATS_PER_TASK), threads));
    }
    void run(int task, int tasks, const Call &call, float *) const override {
        Range range(bytes, task, tasks);
        if (range.begin < range.end)
            memcpy(to + range.begin, (const char *)call.slots[slot] + range.begin, range.end - range.begin);
    }

  private:
    int32_t slot;
    char *to;
    int64_t bytes;
};

} // namespace

Operation *new_load(int32_t slot, const fggp_strides &strides, const fggp_tensor &out, int32_t images) {
    return new Transfer<Load>(out, slot, strides, images);
}
Operation *new_store(const fggp_tensor &in, int32_t slot, const fggp_strides &strides, int32_t images) {
    return new Transfer<Store>(in, slot, strides, images);
}
Operation *new_copy_in(int32_t slot, void *to, int64_t bytes) { return new CopyIn(slot, to, bytes); }

} // namespace fggp
