#include "runtime/quantized_planes.h"

#include <algorithm>

#include "runtime/quantized_tiles.h"

namespace fggp {
namespace {

typedef uint8_t bytes_vec __attribute__((vector_size(LANES * 4)));

/* With fewer pixels of a block, a task costs more to hand out than to run. */
constexpr int64_t MIN_CELLS_PER_TASK = 4096;

/* A plane of one group and block (or channel, of floats). */
struct Plane {
    float *data;
    int64_t row; /* floats from one row to the next */
    Plane(const fggp_tensor &t, int64_t group, int64_t block)
        : data(t.data + (group * t.group + block * t.plane) * t.lanes), row(t.row * t.lanes) {}
    Plane() : data(nullptr), row(0) {}
};

/* Calls work(group, block, call, scratch) for each block of a tensor. */
template <class Work> class BlockWise final : public Operation {
  public:
    BlockWise(const fggp_tensor &shape, int64_t floats, const Work &work) : shape(shape), floats(floats), work(work) {}
    int tasks(int threads) const override {
        int64_t planes = (int64_t)shape.groups * shape.channels;
        int64_t cells = planes * shape.height * shape.width * shape.lanes;
        return (int)std::max<int64_t>(1, std::min({planes, cells / MIN_CELLS_PER_TASK, (int64_t)threads * 4}));
    }
    int64_t scratch() const override { return floats; }
    void run(int task, int tasks, const Call &call, float *scratch) const override {
        Range planes((int64_t)shape.groups * shape.channels, task, tasks);
        for (int64_t i = planes.begin; i < planes.end; i++) work(i / shape.channels, i % shape.channels, call, scratch);
    }

  private:
    fggp_tensor shape;
    int64_t floats;
    Work work;
};
template <class Work> Operation *block_wise(const fggp_tensor &shape, const Work &work, int64_t scratch = 0) {
    return new BlockWise<Work>(shape, scratch, work);
}

/* Calls work(y, x, count) for each vector of a plane, which has `count` floats or more; x: its offset in row y. */
template <class Work> void each_vector(const fggp_tensor &shape, const Work &work) {
    const int64_t floats = (int64_t)shape.width * shape.lanes;
    for (int64_t y = 0; y < shape.height; y++)
        for (int64_t x = 0; x < floats; x += LANES) work(y, x, floats - x);
}

ivec byte_of(ivec block, int k) { return (block >> 8 * k) & 255; }

/* The kernel positions along one axis whose input pixel is inside the image. */
struct Window {
    int64_t start;
    int first, last;
    Window(const fggp_pool &pool, int axis, int64_t out) : start(out * pool.stride[axis] - pool.padding[axis]) {
        const int64_t size = axis ? pool.in.width : pool.in.height, dilation = pool.dilation[axis];
        first = start >= 0 ? 0 : (int)((-start + dilation - 1) / dilation);
        last = size <= start ? 0 : (int)std::min<int64_t>(pool.kernel[axis], (size - start + dilation - 1) / dilation);
    }
};

bytes_vec larger(bytes_vec a, bytes_vec b) { return a > b ? a : b; }

/* A group of images: each pixel is a vector. */
void pool_group(const fggp_pool &pool, const Plane &in, const Plane &out) {
    for (int y = 0; y < pool.out.height; y++) {
        const Window down(pool, 0, y);
        for (int x = 0; x < pool.out.width; x++) {
            const Window across(pool, 1, x);
            bytes_vec most{};
            for (int i = down.first; i < down.last; i++) {
                const float *row = in.data + (down.start + i * pool.dilation[0]) * in.row;
                for (int j = across.first; j < across.last; j++)
                    most = larger(most, (bytes_vec)load(row + (across.start + j * pool.dilation[1]) * LANES));
            }
            store(out.data + y * out.row + (int64_t)x * LANES, (vec)most);
        }
    }
}

/* A single image: first down the columns, in vectors of pixels, then along the rows. */
void pool_single(const fggp_pool &pool, const Plane &in, const Plane &out, float *line) {
    for (int y = 0; y < pool.out.height; y++) {
        const Window down(pool, 0, y);
        for (int64_t x = 0; x < pool.in.width; x += LANES) { /* beyond the row too */
            bytes_vec most{};
            for (int i = down.first; i < down.last; i++)
                most = larger(most, (bytes_vec)load(in.data + (down.start + i * pool.dilation[0]) * in.row + x));
            store(line + x, (vec)most);
        }
        for (int x = 0; x < pool.out.width; x++) {
            const Window across(pool, 1, x);
            uint8_t most[BLOCK] = {};
            for (int j = across.first; j < across.last; j++) {
                auto *from = (const uint8_t *)(line + across.start + j * pool.dilation[1]);
                for (int k = 0; k < BLOCK; k++) most[k] = std::max(most[k], from[k]);
            }
            memcpy(out.data + y * out.row + x, most, BLOCK);
        }
    }
}

/* Calls move(byte of the block, byte of the caller's tensor) for all bytes of a block that the tensor has. */
template <class Move> class ByteTransfer {
  public:
    ByteTransfer(const fggp_tensor &activation, int32_t slot, const fggp_strides &strides, int32_t images,
                 int64_t channels, const Move &move)
        : activation(activation), slot(slot), strides(strides), images(images), channels(channels), move(move) {}
    void operator()(int64_t group, int64_t block, const Call &call, float *) const {
        const Plane plane(activation, group, block);
        const int64_t first = group * activation.lanes, lanes = activation.lanes;
        const int64_t present = std::max<int64_t>(0, std::min<int64_t>(lanes, std::min(call.images, images) - first));
        auto *caller = (uint8_t *)call.slots[slot] + first * strides.image;
        for (int k = 0; k < BLOCK && block * BLOCK + k < channels; k++)
            for (int y = 0; y < activation.height; y++)
                for (int x = 0; x < activation.width; x++) {
                    auto *cell = (uint8_t *)(plane.data + y * plane.row + x * lanes) + k;
                    auto *from = caller + (block * BLOCK + k) * strides.channel + y * strides.row + x * strides.pixel;
                    for (int64_t lane = 0; lane < present; lane++) move(cell[lane * BLOCK], from[lane * strides.image]);
                }
    }

  private:
    fggp_tensor activation;
    int32_t slot;
    fggp_strides strides;
    int32_t images;
    int64_t channels;
    Move move;
};
template <class Move>
Operation *byte_transfer(const fggp_tensor &activation, int32_t slot, const fggp_strides &strides, int32_t images,
                         int64_t channels, const Move &move) {
    return block_wise(activation, ByteTransfer<Move>(activation, slot, strides, images, channels, move));
}

} // namespace

Operation *new_quantize(const fggp_tensor &in, const fggp_tensor &out, const Quantization &to) {
    const Quantizer quantizer(to);
    return block_wise(out, [=](int64_t group, int64_t block, const Call &, float *) {
        const Plane to_plane(out, group, block);
        const int channels = (int)std::min<int64_t>(BLOCK, in.channels - block * BLOCK);
        Plane from[BLOCK];
        for (int k = 0; k < channels; k++) from[k] = Plane(in, group, block * BLOCK + k);
        each_vector(out, [&](int64_t y, int64_t x, int64_t count) {
            ivec bytes{};
            for (int k = 0; k < channels; k++) bytes |= quantizer(load(from[k].data + y * from[k].row + x)) << 8 * k;
            store_first(to_plane.data + y * to_plane.row + x, (vec)bytes, count);
        });
    });
}

Operation *new_dequantize(const fggp_tensor &in, const fggp_tensor &out, const Quantization &is) {
    return block_wise(in, [=](int64_t group, int64_t block, const Call &, float *) {
        const Plane from(in, group, block);
        for (int k = 0; k < BLOCK && block * BLOCK + k < out.channels; k++) {
            const Plane to(out, group, block * BLOCK + k);
            each_vector(in, [&](int64_t y, int64_t x, int64_t count) {
                store_first(to.data + y * to.row + x, is.number(byte_of((ivec)load(from.data + y * from.row + x), k)), count);
            });
        }
    });
}

Operation *new_quantized_max_pool(const fggp_pool &pool) {
    const int64_t scratch = pool.in.lanes > 1 ? 0 : pool.in.width + LANES;
    return block_wise(pool.out, [=](int64_t group, int64_t block, const Call &, float *line) {
        const Plane in(pool.in, group, block), out(pool.out, group, block);
        if (pool.in.lanes > 1) pool_group(pool, in, out);
        else pool_single(pool, in, out, line);
    }, scratch);
}

Operation *new_quantized_sum(const fggp_tensor &a, const fggp_tensor &b, const fggp_tensor &out, const QuantizedSum &is) {
    const Quantizer quantizer(is.out);
    return block_wise(out, [=](int64_t group, int64_t block, const Call &, float *) {
        const Plane p(a, group, block), q(b, group, block), to(out, group, block);
        each_vector(out, [&](int64_t y, int64_t x, int64_t count) {
            const ivec v = (ivec)load(p.data + y * p.row + x), w = (ivec)load(q.data + y * q.row + x);
            ivec bytes{};
            for (int k = 0; k < BLOCK; k++) {
                vec sum = is.a.number(byte_of(v, k)) + is.b.number(byte_of(w, k));
                sum = sum < is.low ? splat(is.low) : sum;
                bytes |= quantizer(sum > is.high ? splat(is.high) : sum) << 8 * k;
            }
            store_first(to.data + y * to.row + x, (vec)bytes, count);
        });
    });
}

Operation *new_quantized_mean(const fggp_tensor &in, const fggp_tensor &out, const Quantization &is) {
    const int32_t pixels = in.height * in.width;
    const float scale = is.scale / (float)pixels;
    return block_wise(in, [=](int64_t group, int64_t block, const Call &, float *) {
        const Plane from(in, group, block);
        ivec sums[BLOCK] = {};
        if (in.lanes > 1)
            each_vector(in, [&](int64_t y, int64_t x, int64_t) {
                /* one after another: the vectors of different pixels hold the same images */
                const ivec v = (ivec)load(from.data + y * from.row + x);
                for (int k = 0; k < BLOCK; k++) sums[k] += byte_of(v, k);
            });
        else
            for (int y = 0; y < in.height; y++)
                for (int x = 0; x < in.width; x++) {
                    uint8_t bytes[BLOCK];
                    memcpy(bytes, from.data + y * from.row + x, BLOCK);
                    for (int k = 0; k < BLOCK; k++) sums[k][0] += bytes[k];
                }
        for (int k = 0; k < BLOCK && block * BLOCK + k < out.channels; k++) {
            const vec mean = __builtin_convertvector(sums[k] - pixels * is.zero, vec) * scale;
            store_first(Plane(out, group, block * BLOCK + k).data, mean, in.lanes);
        }
    });
}

Operation *new_quantized_flatten(const fggp_tensor &in, const fggp_tensor &out, int64_t channels) {
    const int64_t pixels = (int64_t)in.height * in.width, flat = channels * pixels;
    return block_wise(out, [=](int64_t group, int64_t block, const Call &, float *) {
        auto *to = (uint8_t *)Plane(out, group, block).data;
        for (int k = 0; k < BLOCK && block * BLOCK + k < flat; k++) {
            const int64_t channel = (block * BLOCK + k) / pixels, pixel = (block * BLOCK + k) % pixels;
            const Plane from(in, group, channel / BLOCK);
            auto *cell = (const uint8_t *)(from.data + pixel / in.width * from.row + pixel % in.width * in.lanes) + channel % BLOCK;
            for (int lane = 0; lane < in.lanes; lane++) to[lane * BLOCK + k] = cell[lane * BLOCK];
        }
    });
}

Operation *new_load_bytes(int32_t slot, const fggp_strides &strides, const fggp_tensor &out, int32_t images, int64_t channels) {
    return byte_transfer(out, slot, strides, images, channels, [](uint8_t &block, uint8_t &caller) { block = caller; });
}
Operation *new_store_bytes(const fggp_tensor &in, int32_t slot, const fggp_strides &strides, int32_t images, int64_t channels) {
    return byte_transfer(in, slot, strides, images, channels, [](uint8_t &block, uint8_t &caller) { caller = block; });
}

} // namespace fggp
