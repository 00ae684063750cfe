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
        bool adjacent = activation.lanes == 1 && strides.channel == 1 && strides.pixel > 1;
        block_channels = adjacent ? CHANNELS_PER_BLOCK : 1;
        blocks = (activation.channels + block_channels - 1) / block_channels;
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
            if (block_channels > 1)
                copy_channels(a, b, (int)std::min<int64_t>(block_channels, activation.channels - first));
            else if (activation.lanes == 1)
                copy_plane(a, b);
            else {
                int64_t present = std::min(call.images, images) - group * LANES;
                copy_group_plane(a, b, (int)std::max<int64_t>(0, std::min<int64_t>(LANES, present)));
            }
        }
    }

  private:
    /* A few channels of a single image. */
    void copy_channels(float *a, float *b, int channels) const {
        for (int y = 0; y < activation.height; y++)
            for (int x = 0; x < activation.width; x++)
                for (int c = 0; c < channels; c++)
                    Direction::move(a[c * activation.plane + y * activation.row + x],
                                    b[y * strides.row + x * strides.pixel + c]);
    }

    /* One plane of a single image. */
    void copy_plane(float *a, float *b) const {
        for (int y = 0; y < activation.height; y++)
            for (int x = 0; x < activation.width; x++)
                Direction::move(a[y * activation.row + x], b[y * strides.row + x]);
    }

    /* One plane of a group of images. A load fills the lanes of missing images with zeros; a store skips them. */
    void copy_group_plane(float *a, float *b, int present) const {
        for (int y = 0; y < activation.height; y++)
            for (int x = 0; x < activation.width; x++) {
                float *pixel = a + (y * activation.row + x) * LANES;
                float *caller_pixel = b + y * strides.row + x * strides.pixel;
                for (int lane = 0; lane < present; lane++)
                    Direction::move(pixel[lane], caller_pixel[lane * strides.image]);
                if (std::is_same<Direction, Load>::value) std::fill(pixel + present, pixel + LANES, 0.0f);
            }
    }

    fggp_tensor activation;
    int32_t slot;
    fggp_strides strides;
    int32_t images;
    int block_channels; /* copied together */
    int64_t blocks;     /* of channels, in a group */
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
