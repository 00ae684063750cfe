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

/* Works on one tile, block by block of output channels: sums, then what becomes of them. */
class TileRun {
  public:
    TileRun(const Job &job, const Tile &tile)
        : job(job), tile(tile), q(*job.quantized), finish(q), vectors(tile.rows * tile.columns) {}

    /* add_products(channel, from, to): the sums `from` an earlier chunk of input channels, or else the first ones, plus
     * this chunk's products. */
    template <class AddProducts> void run(const AddProducts &add_products) {
        for (int channel = job.begin; channel < job.end; channel++) {
            const int of_block = channel % BLOCK;
            float *partial = job.scratch + (int64_t)(channel - job.begin) * vectors * LANES;
            if (job.last && job.prefetch) fetch_early(channel);
            add_products(channel, job.first ? nullptr : partial, job.last ? (float *)sums[of_block] : partial);
            if (job.last && (of_block == BLOCK - 1 || channel == job.end - 1)) write(channel / BLOCK, of_block + 1);
        }
    }

  private:
    /* Otherwise each store would wait for its line. */
    __attribute__((noinline)) void fetch_early(int channel) const {
        const bool begins = channel % BLOCK == 0;
        for (int r = 0; r < tile.rows; r++)
            for (int c = 0; c < tile.columns; c++) {
                if (begins || !q.returns_bytes)
                    __builtin_prefetch(job.out + tile.out[r] + plane_of(channel) * job.out_plane + c * LANES, 1, 3);
                if (begins && job.residual)
                    __builtin_prefetch(job.residual + tile.residual[r] + channel / BLOCK * job.residual_plane + c * LANES, 0, 3);
            }
    }

    int64_t plane_of(int channel) const { return q.returns_bytes ? channel / BLOCK : channel; }

    /* count: the channels that this block has. */
    __attribute__((noinline)) void write(int block, int count) const {
        const ivec padding = (int32_t)(q.out_padding * 0x01010101u) - ivec{}; /* of all four, beyond the last channel too */
        vec scale[BLOCK], bias[BLOCK];
        for (int k = 0; k < BLOCK; k++) {
            const int channel = block * BLOCK + std::min(k, count - 1);
            scale[k] = splat(q.scale[channel]), bias[k] = splat(job.bias[channel]);
        }
        for (int r = 0; r < tile.rows; r++)
            for (int c = 0; c < tile.columns; c++) {
                const ivec mask = job.mask ? *(const loose_ivec *)(job.mask + tile.mask[r] + c * LANES) : ~ivec{};
                ivec residual{}, bytes{};
                if (job.residual)
                    residual = (ivec)load(job.residual + tile.residual[r] + block * job.residual_plane + c * LANES);
                float *out = job.out + tile.out[r] + c * LANES;
                for (int k = 0; k < count; k++) {
                    vec y = __builtin_convertvector(sums[k][r * tile.columns + c], vec) * scale[k] + bias[k];
                    if (job.residual) y += finish.residual.number(residual >> 8 * k & 255);
                    y = finish.number(y);
                    if (q.returns_bytes) bytes |= finish.quantizer(y) << 8 * k;
                    else store(out + plane_of(block * BLOCK + k) * job.out_plane, (vec)((ivec)y & mask));
                }
                if (q.returns_bytes) store(out + block * job.out_plane, (vec)((bytes & mask) | (padding & ~mask)));
            }
    }

    const Job &job;
    const Tile &tile;
    const fggp_quantized &q;
    const Finish finish;
    const int vectors;
    ivec sums[BLOCK][REGISTERS];
};

/* STEP: as in tiles.h. */
template <class Dot, int R, int C, int STEP> void run_quantized_tile(const Job &job, const Tile &tile) {
    constexpr int CHAINS = R * C >= 8 ? 1 : R * C >= 4 ? 2 : R * C >= 2 ? 4 : 8;
    const char *in[R];
    for (int r = 0; r < R; r++) in[r] = (const char *)(job.in + tile.in[r]);

    TileRun(job, tile).run([&](int channel, const float *from, float *to) {
        const fggp_entry *entry = job.entries + job.starts[channel];
        const fggp_entry *end = job.entries + job.starts[channel + 1];
        ivec sums[CHAINS][R * C];
#pragma GCC unroll 8
        for (int k = 0; k < CHAINS; k++)
#pragma GCC unroll 16
            for (int i = 0; i < R * C; i++)
                sums[k][i] = k ? ivec{} : from ? (ivec)load(from + i * LANES) : job.quantized->first[channel] - ivec{};
        auto add = [&](int k, const fggp_entry &one) __attribute__((always_inline)) {
            const auto weights = Dot::spread(one.weights);
            const int64_t offset = one.offset;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    Dot::add(sums[k][r * C + c], *(const loose_ivec *)(in[r] + offset + c * STEP * LANES * 4), weights);
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
#pragma GCC unroll 16
            for (int i = 0; i < R * C; i++) sums[0][i] += sums[k][i];
#pragma GCC unroll 16
        for (int i = 0; i < R * C; i++) store(to + i * LANES, (vec)sums[0][i]);
    });
}

template <int R, int C, int STEP> struct PlainTile {
    static void run(const Job &job, const Tile &tile) { run_quantized_tile<PlainDot, R, C, STEP>(job, tile); }
};
#if FGGP_HAS_VNNI
template <int R, int C, int STEP> struct VnniTile {
    static void run(const Job &job, const Tile &tile) { run_quantized_tile<VnniDot, R, C, STEP>(job, tile); }
};
#endif

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
    if (vnni && !q.plain_dot) return TileKernels<VnniTile>::find(stride, rows, columns);
#endif
    return TileKernels<PlainTile>::find(stride, rows, columns);
}

Operation *new_quantized_product(const fggp_conv &spec) { return new Product(spec); }

} // namespace fggp
