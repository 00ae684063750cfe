#include "runtime/quantized_tiles.h"

#include <algorithm>
#include <type_traits>

#include "runtime/dot.h"
#include "runtime/quantization.h"

namespace fggp {
namespace {

/* What becomes of sums: float numbers that are stored, or bytes of a block. */
struct Finish {
    explicit Finish(const fggp_quantized &q)
        : residual{q.residual_scale, q.residual_zero}, quantizer(Quantization{q.out_scale, q.out_zero}), low(q.low), high(q.high) {}
    template <class Sum> auto number(Sum y) const {
        y = y < low ? all<Sum>(low) : y;
        return y > high ? all<Sum>(high) : y;
    }
    /* A sum with 0 would lose the sign of -0. */
    template <class Sum> static Sum all(float number) {
        if constexpr (std::is_same<Sum, vec>::value) return splat(number);
        else return number;
    }
    Quantization residual;
    Quantizer quantizer;
    float low, high;
};

/* As run_tile in tiles.h. A block of output channels is written channel by channel, each time its own byte. */
template <class Dot, int R, int C, int STEP> void run_quantized_tile(const Job &job, const Tile &tile) {
    constexpr int CHAINS = R * C >= 8 ? 1 : R * C >= 4 ? 2 : R * C >= 2 ? 4 : 8;
    const fggp_quantized &q = *job.quantized;
    const Finish finish(q);
    const char *in[R];
    for (int r = 0; r < R; r++) in[r] = (const char *)(job.in + tile.in[r]);

    for (int channel = job.begin; channel < job.end; channel++) {
        const fggp_entry *entry = job.entries + job.starts[channel];
        const fggp_entry *end = job.entries + job.starts[channel + 1];
        if (job.last && job.prefetch && q.returns_bytes && channel % BLOCK == 0) {
            const int64_t next = channel / BLOCK + 1;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) {
                    __builtin_prefetch(job.out + tile.out[r] + next * job.out_plane + c * LANES, 1, 3);
                    if (job.residual)
                        __builtin_prefetch(job.residual + tile.residual[r] + next * job.residual_plane + c * LANES, 0, 3);
                }
        }
        float *partial = job.scratch + (int64_t)(channel - job.begin) * (R * C * LANES);
        ivec sums[CHAINS][R][C];
#pragma GCC unroll 8
        for (int k = 0; k < CHAINS; k++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    sums[k][r][c] = k ? ivec{} : job.first ? q.first[channel] - ivec{} : (ivec)load(partial + (r * C + c) * LANES);
        auto add = [&](int k, const fggp_entry &one) __attribute__((always_inline)) {
            const auto weights = Dot::spread(one.weights);
            const int64_t offset = one.offset;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    Dot::add(sums[k][r][c], *(const loose_ivec *)(in[r] + offset + c * STEP * LANES * 4), weights);
        };
        if (CHAINS > 1) {
            for (; end - entry >= CHAINS; entry += CHAINS) {
#pragma GCC unroll 8
                for (int k = 0; k < CHAINS; k++) add(k, entry[k]);
            }
        }
        for (; entry < end; entry++) add(0, *entry);
#pragma GCC unroll 8
        for (int k = 1; k < CHAINS; k++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sums[0][r][c] += sums[k][r][c];
        if (!job.last) {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) store(partial + (r * C + c) * LANES, (vec)sums[0][r][c]);
            continue;
        }
        const vec scale = splat(q.scale[channel]), bias = splat(job.bias[channel]);
        const int block = channel / BLOCK, shift = channel % BLOCK * 8;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float *out = job.out + tile.out[r] + (q.returns_bytes ? block : channel) * job.out_plane;
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                vec y = __builtin_convertvector(sums[0][r][c], vec) * scale + bias;
                if (job.residual) {
                    const float *more = job.residual + tile.residual[r] + block * job.residual_plane + c * LANES;
                    y += finish.residual.number(((ivec)load(more) >> shift) & 255);
                }
                y = finish.number(y);
                ivec mask = job.mask ? *(const loose_ivec *)(job.mask + tile.mask[r] + c * LANES) : ~ivec{};
                if (q.returns_bytes) {
                    const ivec bytes = ((finish.quantizer(y) - q.out_padding) & mask) + q.out_padding;
                    y = (vec)(((ivec)load(out + c * LANES) & ~(255 << shift)) | bytes << shift);
                } else if (job.mask)
                    y = (vec)((ivec)y & mask);
                store(out + c * LANES, y);
            }
        }
    }
}

template <class Dot, int R, int C, int STEP> constexpr TileKernel kernel_of() {
    if constexpr (R * C <= REGISTERS && (STEP == 1 || R <= MAX_STRIDED_ROWS))
        return &run_quantized_tile<Dot, R, C, STEP>;
    else
        return nullptr;
}

template <class Dot> TileKernel kernel_for(int stride, int rows, int columns) {
#define FGGP_ROW(R, STEP)                                                                                              \
    {kernel_of<Dot, R, 1, STEP>(), kernel_of<Dot, R, 2, STEP>(), kernel_of<Dot, R, 3, STEP>(),                         \
     kernel_of<Dot, R, 4, STEP>(), kernel_of<Dot, R, 5, STEP>(), kernel_of<Dot, R, 6, STEP>(),                         \
     kernel_of<Dot, R, 7, STEP>(), kernel_of<Dot, R, 8, STEP>()}
    static const TileKernel ALL[2][MAX_ROWS][MAX_COLUMNS] = {
        {FGGP_ROW(1, 1), FGGP_ROW(2, 1), FGGP_ROW(3, 1), FGGP_ROW(4, 1)},
        {FGGP_ROW(1, 2), FGGP_ROW(2, 2), FGGP_ROW(3, 2), FGGP_ROW(4, 2)},
    };
#undef FGGP_ROW
    return ALL[stride - 1][rows - 1][columns - 1];
}

/* Enough tasks that threads which finish early take over the work of a slow one. */
constexpr int TASKS_PER_THREAD = 4;
/* With fewer blocks of output channels, a task costs more to hand out than to run. */
constexpr int64_t MIN_BLOCKS_PER_TASK = 2;

class Product final : public Operation {
  public:
    explicit Product(const fggp_conv &spec) : spec(spec), q(*spec.quantized), finish(q) {}

    int tasks(int threads) const override {
        return (int)std::max<int64_t>(1, std::min<int64_t>(threads * TASKS_PER_THREAD, blocks() / MIN_BLOCKS_PER_TASK));
    }

    void run(int task, int tasks, const Call &, float *) const override {
        Range range(blocks(), task, tasks);
        for (int64_t block = range.begin; block < range.end; block++)
            for (int image = 0; image < spec.out.groups; image++) write(image, block);
    }

  private:
    int64_t blocks() const { return (q.channels + BLOCK - 1) / BLOCK; }

    void write(int image, int64_t block) const {
        float *out = spec.out.data + image * spec.out.group;
        uint8_t residual[BLOCK] = {}, bytes[BLOCK] = {};
        if (spec.residual.data) memcpy(residual, spec.residual.data + image * spec.residual.group + block * spec.residual.plane, BLOCK);
        for (int k = 0; k < BLOCK && block * BLOCK + k < q.channels; k++) {
            const int64_t channel = block * BLOCK + k;
            float y = (float)sum(image, channel) * q.scale[channel] + spec.bias[channel];
            if (spec.residual.data) y += finish.residual.number(residual[k]);
            y = finish.number(y);
            if (q.returns_bytes) bytes[k] = (uint8_t)finish.quantizer(y);
            else out[channel * spec.out.plane] = y;
        }
        if (q.returns_bytes) memcpy(out + block * spec.out.plane, bytes, BLOCK);
    }

    int32_t sum(int image, int64_t channel) const {
        const char *in = (const char *)(spec.in.data + image * spec.in.group);
        int32_t all = q.first[channel];
        for (uint32_t i = spec.starts[channel]; i < spec.starts[channel + 1]; i++) {
            auto *x = (const uint8_t *)in + spec.entries[i].offset;
            int8_t w[BLOCK];
            memcpy(w, &spec.entries[i].weights, BLOCK);
            all += (x[0] * w[0] + x[1] * w[1]) + (x[2] * w[2] + x[3] * w[3]);
        }
        return all;
    }

    fggp_conv spec;
    const fggp_quantized &q;
    Finish finish;
};

} // namespace

TileKernel quantized_kernel([[maybe_unused]] const fggp_quantized &q, int stride, int rows, int columns) {
#if FGGP_HAS_VNNI
    static const bool vnni = has_vnni();
    if (vnni && !q.plain_dot) return kernel_for<VnniDot>(stride, rows, columns);
#endif
    return kernel_for<PlainDot>(stride, rows, columns);
}

Operation *new_quantized_product(const fggp_conv &spec) { return new Product(spec); }

} // namespace fggp
