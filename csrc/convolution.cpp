#include "convolution.h"

#include <algorithm>
#include <vector>

#include "tiles.h"

namespace fggp {
namespace {

/* Partial sums between chunks stay within the second-level cache. */
constexpr int64_t SCRATCH_FLOATS = 48 * 1024;
/* Tasks a thread: enough that an unlucky one does not hold up the rest. */
constexpr int TASKS_A_THREAD = 4;
/* Fewer channels a task are not worth passing their inputs again. */
constexpr int64_t LEAST_CHANNELS = 8;

/* A run of vectors in one row (images in lanes) or one plane (pixels in lanes). */
struct Run {
    int32_t columns;
    int64_t in, out, residual, mask;
};

class Convolution final : public Operation {
  public:
    explicit Convolution(const fggp_conv &spec) : spec(spec) {
        if (spec.in.lanes == 1)
            mark_pixels();
        for (const Run &run : runs()) {
            bool joins = !tiles.empty() && tiles.back().columns == run.columns && tiles.back().rows < most_rows(run);
            if (!joins) {
                tiles.emplace_back();
                tiles.back().rows = 0;
                tiles.back().columns = run.columns;
            }
            Tile &tile = tiles.back();
            tile.in[tile.rows] = run.in;
            tile.out[tile.rows] = run.out;
            tile.residual[tile.rows] = run.residual;
            tile.mask[tile.rows] = run.mask;
            tile.rows++;
        }
        int64_t floats = (int64_t)spec.tile_rows * spec.tile_columns * LANES;
        block = std::min<int64_t>(spec.out.channels, std::max<int64_t>(LEAST_CHANNELS, SCRATCH_FLOATS / floats));
    }

    int64_t scratch() const override {
        return spec.chunks > 1 ? block * spec.tile_rows * spec.tile_columns * LANES : 0;
    }

    int tasks(int threads) const override {
        return (int)(tile_parts(threads) * channel_parts(threads));
    }

    void run(int task, int tasks, void *const *, float *scratch) const override {
        int64_t in_tiles = std::min<int64_t>(tasks, (int64_t)tiles.size());
        int64_t in_channels = tasks / in_tiles;
        Range part(tiles.size(), task / in_channels, in_tiles);
        Range channels(spec.out.channels, task % in_channels, in_channels);
        Job job{};
        job.in = spec.in.data;
        job.out = spec.out.data;
        job.residual = spec.residual.data;
        job.scratch = scratch;
        job.mask = pixels.empty() ? nullptr : pixels.data();
        job.out_plane = spec.out.plane * spec.out.lanes;
        job.residual_plane = spec.residual.plane * spec.residual.lanes;
        job.entries = spec.entries;
        job.bias = spec.bias;
        job.relu = spec.relu;
        for (int64_t i = part.begin; i < part.end; i++) {
            const Tile &tile = tiles[i];
            TileKernel kernel = KERNELS[tile_step() - 1][tile.rows - 1][tile.columns - 1];
            for (int64_t begin = channels.begin; begin < channels.end; begin += block) {
                job.begin = (int32_t)begin;
                job.end = (int32_t)std::min(begin + block, channels.end);
                for (int chunk = 0; chunk < spec.chunks; chunk++) {
                    job.starts = spec.starts + (int64_t)chunk * spec.out.channels;
                    job.first = chunk == 0;
                    job.last = chunk == spec.chunks - 1;
                    kernel(job, tile);
                }
            }
        }
    }

  private:
    int tile_step() const { return spec.in.lanes == 1 ? 1 : spec.stride; }
    int32_t most_rows(const Run &) const { return spec.tile_rows; }

    int64_t tile_parts(int threads) const {
        return std::min<int64_t>((int64_t)tiles.size(), (int64_t)threads * TASKS_A_THREAD);
    }

    int64_t channel_parts(int threads) const {
        if (threads == 1) return 1;
        int64_t parts = (int64_t)threads * TASKS_A_THREAD / tile_parts(threads);
        return std::max<int64_t>(1, std::min<int64_t>(parts, spec.out.channels / LEAST_CHANNELS));
    }

    std::vector<Run> runs() const {
        const fggp_tensor &in = spec.in, &out = spec.out, &residual = spec.residual;
        std::vector<Run> all;
        int lanes = in.lanes;
        if (lanes == 1) { /* whole planes, margins included: they come out as zeros */
            int vectors = (int)(out.plane / LANES);
            for (int start = 0; start < vectors; start += spec.tile_columns)
                for (int group = 0; group < out.groups; group++) {
                    int64_t at = (int64_t)start * LANES;
                    all.push_back({std::min(spec.tile_columns, vectors - start), group * in.group + at,
                                   group * out.group + at, group * residual.group + at, at});
                }
            return all;
        }
        int height = out.height, width = out.width;
        bool one_row = spec.stride == 1 && in.row == width && out.row == width && in.height == height &&
                       (!residual.data || residual.row == width);
        if (one_row) {
            width *= height;
            height = 1;
        }
        for (int start = 0; start < width; start += spec.tile_columns)
            for (int group = 0; group < out.groups; group++)
                for (int y = 0; y < height; y++)
                    all.push_back({std::min(spec.tile_columns, width - start),
                                   (group * in.group + y * spec.stride * in.row + start * spec.stride) * lanes,
                                   (group * out.group + y * out.row + start) * lanes,
                                   (group * residual.group + y * residual.row + start) * lanes, 0});
        if (one_row) /* neighbours make a tile */
            std::stable_sort(all.begin(), all.end(), [](const Run &a, const Run &b) {
                return a.columns != b.columns ? a.columns > b.columns : a.out < b.out;
            });
        return all;
    }

    void mark_pixels() {
        pixels.assign(spec.out.plane, 0);
        for (int y = 0; y < spec.out.height; y++)
            for (int x = 0; x < spec.out.width; x++) pixels[y * spec.out.row + x] = -1;
    }

    fggp_conv spec;
    std::vector<Tile> tiles;
    std::vector<int32_t> pixels;
    int64_t block;
};

class Product final : public Operation {
  public:
    explicit Product(const fggp_conv &spec) : spec(spec) {}

    int tasks(int threads) const override {
        return (int)std::max<int64_t>(1, std::min<int64_t>(threads * TASKS_A_THREAD, spec.out.channels / LEAST_CHANNELS));
    }

    void run(int task, int tasks, void *const *, float *) const override {
        Range channels(spec.out.channels, task, tasks);
        for (int64_t channel = channels.begin; channel < channels.end; channel++)
            for (int image = 0; image < spec.out.groups; image++) {
                const char *in = (const char *)(spec.in.data + image * spec.in.group);
                const fggp_entry *entry = spec.entries + spec.starts[channel];
                const fggp_entry *end = spec.entries + spec.starts[channel + 1];
                float sums[4] = {spec.bias[channel], 0, 0, 0}; /* four, so that none waits for the one before */
                for (; end - entry >= 4; entry += 4)
                    for (int k = 0; k < 4; k++) sums[k] += entry[k].value * *(const float *)(in + entry[k].offset);
                for (; entry < end; entry++) sums[0] += entry->value * *(const float *)(in + entry->offset);
                float sum = sums[0] + sums[1] + sums[2] + sums[3];
                if (spec.residual.data)
                    sum += spec.residual.data[image * spec.residual.group + channel * spec.residual.plane];
                if (spec.relu) sum = sum < 0 ? 0 : sum;
                spec.out.data[image * spec.out.group + channel * spec.out.plane] = sum;
            }
    }

  private:
    fggp_conv spec;
};

} // namespace

Operation *new_convolution(const fggp_conv &spec) { return new Convolution(spec); }
Operation *new_product(const fggp_conv &spec) { return new Product(spec); }

} // namespace fggp
