#include "runtime/transfers.h"

#include <algorithm>
#include <type_traits>

#include "runtime/tiles.h"

namespace fggp {
namespace {

/* Channels that are moved together where the caller's lie side by side: a cache line of them. */
constexpr int SIDE_BY_SIDE = 16;
/* Floats a task, about: less is not worth handing out. */
constexpr int64_t LEAST_FLOATS = 8192;

/* Which way the numbers go. */
struct In {
    static void move(float &ours, float &theirs) { ours = theirs; }
};
struct Out {
    static void move(float &ours, float &theirs) { theirs = ours; }
};

template <class Way> class Transfer final : public Operation {
  public:
    Transfer(const fggp_tensor &ours, int32_t slot, const fggp_strides &theirs)
        : ours(ours), slot(slot), theirs(theirs) {
        together = theirs.channel == 1 && theirs.pixel > 1 ? SIDE_BY_SIDE : 1;
        blocks = (ours.channels + together - 1) / together;
    }

    int tasks(int threads) const override {
        int64_t floats = (int64_t)ours.groups * ours.channels * ours.height * ours.width * ours.lanes;
        int64_t all = ours.groups * blocks;
        return (int)std::max<int64_t>(1, std::min({all, floats / LEAST_FLOATS, (int64_t)threads * 4}));
    }

    void run(int task, int tasks, const Call &call, float *) const override {
        Range range(ours.groups * blocks, task, tasks);
        for (int64_t i = range.begin; i < range.end; i++) {
            int64_t group = i / blocks, first = i % blocks * together;
            float *a = ours.data + (group * ours.group + first * ours.plane) * ours.lanes;
            float *b = (float *)call.slots[slot] + group * ours.lanes * theirs.image + first * theirs.channel;
            if (together > 1)
                side_by_side(a, b, (int)std::min<int64_t>(together, ours.channels - first));
            else if (ours.lanes == 1)
                one_image(a, b);
            else
                images(a, b, (int)std::max<int64_t>(0, std::min<int64_t>(LANES, call.images - group * LANES)));
        }
    }

  private:
    /* A few channels of a single image. */
    void side_by_side(float *a, float *b, int channels) const {
        for (int y = 0; y < ours.height; y++)
            for (int x = 0; x < ours.width; x++)
                for (int c = 0; c < channels; c++)
                    Way::move(a[c * ours.plane + y * ours.row + x], b[y * theirs.row + x * theirs.pixel + c]);
    }

    /* One plane of a single image. */
    void one_image(float *a, float *b) const {
        for (int y = 0; y < ours.height; y++)
            for (int x = 0; x < ours.width; x++) Way::move(a[y * ours.row + x], b[y * theirs.row + x]);
    }

    /* One plane of as many images as there are lanes; beyond those present, zeros come in and nothing goes out. */
    void images(float *a, float *b, int present) const {
        for (int y = 0; y < ours.height; y++)
            for (int x = 0; x < ours.width; x++) {
                float *pixel = a + (y * ours.row + x) * LANES, *theirs_at = b + y * theirs.row + x * theirs.pixel;
                for (int lane = 0; lane < present; lane++) Way::move(pixel[lane], theirs_at[lane * theirs.image]);
                if (std::is_same<Way, In>::value) std::fill(pixel + present, pixel + LANES, 0.0f);
            }
    }

    fggp_tensor ours;
    int32_t slot;
    fggp_strides theirs;
    int together;
    int64_t blocks;
};

} // namespace

Operation *new_load(int32_t slot, const fggp_strides &strides, const fggp_tensor &out) {
    return new Transfer<In>(out, slot, strides);
}
Operation *new_store(const fggp_tensor &in, int32_t slot, const fggp_strides &strides) {
    return new Transfer<Out>(in, slot, strides);
}

} // namespace fggp
