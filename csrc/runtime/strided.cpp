#include "runtime/strided.h"

#include <algorithm>

#include "runtime/activations.h"
#include "vectors.h"

namespace fggp {
namespace {

/* Enough tasks that threads which finish early take over the work of a slow one. */
constexpr int TASKS_PER_THREAD = 4;
/* Vectors of one output row that are summed at the same time. */
constexpr int MAX_COLUMNS = 4;

class Strided final : public Operation {
  public:
    explicit Strided(const fggp_conv &spec) : spec(spec), activation(spec.activation) {}

    int tasks(int threads) const override {
        int64_t planes = (int64_t)spec.out.groups * spec.out.channels;
        return (int)std::min<int64_t>(planes, (int64_t)threads * TASKS_PER_THREAD);
    }

    void run(int task, int tasks, const Call &, float *) const override {
        Range planes((int64_t)spec.out.groups * spec.out.channels, task, tasks);
        for (int64_t i = planes.begin; i < planes.end; i++) plane(i / spec.out.channels, i % spec.out.channels);
    }

  private:
    void plane(int64_t group, int64_t channel) const {
        const float *in = spec.in.data + group * spec.in.group;
        float *out = spec.out.data + group * spec.out.group + channel * spec.out.plane;
        const float *residual = spec.residual.data;
        if (residual) residual += group * spec.residual.group + channel * spec.residual.plane;
        for (int y = 0; y < spec.out.height; y++) {
            float *row = out + y * spec.out.row;
            for (int x = 0; x < spec.out.width; x += MAX_COLUMNS * LANES) {
                const float *from = in + 2 * (y * spec.in.row + x);
                const float *more = residual ? residual + y * spec.residual.row + x : nullptr;
                int floats = std::min(spec.out.width - x, MAX_COLUMNS * LANES);
                switch ((floats + LANES - 1) / LANES) {
                case 1: vectors<1>(channel, from, more, row + x, floats); break;
                case 2: vectors<2>(channel, from, more, row + x, floats); break;
                case 3: vectors<3>(channel, from, more, row + x, floats); break;
                default: vectors<4>(channel, from, more, row + x, floats);
                }
            }
        }
        if (activation.follows) activation.apply_to_plane(out, spec.out.height, spec.out.width, spec.out.row);
    }

    /* Compute C vectors of a row, of which the last one may be incomplete. */
    template <int C>
    void vectors(int64_t channel, const float *in, const float *residual, float *out, int floats) const {
        const fggp_entry *entry = spec.entries + spec.starts[channel];
        const fggp_entry *end = spec.entries + spec.starts[channel + 1];
        vec sums[C];
        for (int c = 0; c < C; c++) sums[c] = splat(spec.bias[channel]);
        for (; entry < end; entry++) {
            vec value = splat(entry->value);
            const float *from = (const float *)((const char *)in + entry->offset);
            for (int c = 0; c < C; c++) sums[c] += value * load_every_second(from + 2 * c * LANES);
        }
        if (residual)
            for (int c = 0; c < C; c++) sums[c] += load(residual + c * LANES);
        if (activation.clamps)
            for (int c = 0; c < C; c++) sums[c] = activation.clamped(sums[c]);
        /* what follows the last float is padding, which stays zero, or the next row */
        for (int c = 0; c < C; c++) store_first(out + c * LANES, sums[c], floats - c * LANES);
    }

    fggp_conv spec;
    Activation activation;
};

} // namespace

Operation *new_strided(const fggp_conv &spec) { return new Strided(spec); }

} // namespace fggp
