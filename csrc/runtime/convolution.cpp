#include "runtime/convolution.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "runtime/tiles.h"

namespace fggp {
namespace {

/* Partial sums between chunks stay within the second-level cache. */
constexpr int64_t SCRATCH_FLOATS = 48 * 1024;
/* Tasks a thread: enough that an unlucky one does not hold up the rest. */
constexpr int TASKS_A_THREAD = 4;
/* Fewer channels a task are not worth passing their inputs again. */
constexpr int64_t LEAST_CHANNELS = 8;

/* Output pixels that a tile's row covers: `columns` vectors from (y, x) of a group on. */
struct Run {
    int32_t columns, group, y, x;
};

/* How the tiles of a whole chain are laid over its output. */
class Cover {
  public:
    Cover(const fggp_conv *chain, int length) : lanes(chain[0].out.lanes) {
        const fggp_tensor &out = chain[0].out;
        columns = chain[0].tile_columns;
        flat = true;
        for (int i = 0; i < length; i++) flat = flat && (lanes == 1 || is_flat(chain[i]));
        height = flat ? 1 : out.height;
        width = flat ? (out.height - 1) * (int)out.row + out.width : out.width;
        if (lanes == 1) width = (width + LANES - 1) / LANES; /* over the margins between rows, which come out as zeros */
        groups = out.groups;
    }

    std::vector<std::vector<Run>> tiles(int most_rows) const {
        std::vector<Run> runs;
        for (int x = 0; x < width; x += columns)
            for (int group = 0; group < groups; group++)
                for (int y = 0; y < height; y++) runs.push_back({std::min(columns, width - x), group, y, x});
        if (flat) /* neighbours make a tile */
            std::sort(runs.begin(), runs.end(), [](const Run &a, const Run &b) {
                return std::make_tuple(-a.columns, a.group, a.x) < std::make_tuple(-b.columns, b.group, b.x);
            });
        std::vector<std::vector<Run>> all;
        for (const Run &run : runs) {
            if (all.empty() || (int)all.back().size() == most_rows || all.back()[0].columns != run.columns)
                all.emplace_back();
            all.back().push_back(run);
        }
        return all;
    }

    /* Where a run begins in a tensor, in floats; stride: of the convolution that reads it. */
    int64_t at(const Run &run, const fggp_tensor &tensor, int stride) const {
        int64_t step = lanes == 1 ? LANES : (int64_t)lanes * stride;
        return (run.group * tensor.group + (int64_t)run.y * stride * tensor.row) * lanes + run.x * step;
    }

  private:
    static bool is_flat(const fggp_conv &conv) {
        return conv.stride == 1 && conv.in.height == conv.out.height && conv.in.row == conv.out.width &&
               conv.out.row == conv.out.width && (!conv.residual.data || conv.residual.row == conv.out.width);
    }

    bool flat; /* planes are one long row */
    int lanes, groups, height, width, columns;
};

/* One convolution of a chain. */
class Stage {
  public:
    Stage(const fggp_conv &spec, const Cover &cover, const std::vector<std::vector<Run>> &runs) : spec(spec) {
        if (spec.in.lanes == 1) mark_pixels();
        int64_t vectors = 1;
        for (const auto &rows : runs) {
            Tile tile{};
            tile.rows = (int32_t)rows.size();
            tile.columns = rows[0].columns;
            for (int r = 0; r < tile.rows; r++) {
                tile.in[r] = cover.at(rows[r], spec.in, spec.stride);
                tile.out[r] = cover.at(rows[r], spec.out, 1);
                tile.residual[r] = cover.at(rows[r], spec.residual, 1);
                tile.mask[r] = (int64_t)rows[r].x * LANES;
            }
            tiles.push_back(tile);
            vectors = std::max<int64_t>(vectors, tile.rows * tile.columns);
        }
        block = std::min<int64_t>(spec.out.channels, std::max(LEAST_CHANNELS, SCRATCH_FLOATS / (vectors * LANES)));
        scratch = spec.chunks > 1 ? block * vectors * LANES : 0;
    }

    void run(int64_t index, Range channels, float *memory) const {
        const Tile &tile = tiles[index];
        TileKernel kernel = KERNELS[spec.in.lanes == 1 ? 0 : spec.stride - 1][tile.rows - 1][tile.columns - 1];
        Job job{};
        job.in = spec.in.data;
        job.out = spec.out.data;
        job.residual = spec.residual.data;
        job.scratch = memory;
        job.mask = pixels.empty() ? nullptr : pixels.data();
        job.out_plane = spec.out.plane * spec.out.lanes;
        job.residual_plane = spec.residual.plane * spec.residual.lanes;
        job.entries = spec.entries;
        job.bias = spec.bias;
        job.relu = spec.relu;
        job.ahead = spec.in.lanes > 1; /* of single images, all is near */
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

    int64_t channels() const { return spec.out.channels; }
    int64_t scratch; /* floats */

  private:
    void mark_pixels() {
        pixels.assign(spec.out.height * spec.out.row + LANES, 0);
        for (int y = 0; y < spec.out.height; y++)
            for (int x = 0; x < spec.out.width; x++) pixels[y * spec.out.row + x] = -1;
    }

    fggp_conv spec;
    std::vector<Tile> tiles;
    std::vector<int32_t> pixels;
    int64_t block;
};

class Convolution final : public Operation {
  public:
    Convolution(const fggp_conv *chain, int length) {
        Cover cover(chain, length);
        auto runs = cover.tiles(chain[0].tile_rows);
        count = (int64_t)runs.size();
        for (int i = 0; i < length; i++) stages.emplace_back(chain[i], cover, runs);
    }

    int64_t scratch() const override {
        int64_t most = 0;
        for (const Stage &stage : stages) most = std::max(most, stage.scratch);
        return most;
    }

    int tasks(int threads) const override { return (int)(tile_parts(threads) * channel_parts(threads)); }

    void run(int task, int tasks, const Call &, float *memory) const override {
        int64_t tile_parts = std::min<int64_t>(tasks, count), channel_parts = tasks / tile_parts;
        Range part(count, task / channel_parts, tile_parts);
        for (int64_t tile = part.begin; tile < part.end; tile++)
            for (const Stage &stage : stages)
                stage.run(tile, Range(stage.channels(), task % channel_parts, channel_parts), memory);
    }

  private:
    int64_t tile_parts(int threads) const { return std::min<int64_t>(count, (int64_t)threads * TASKS_A_THREAD); }

    int64_t channel_parts(int threads) const {
        if (threads == 1 || stages.size() > 1) return 1; /* the next stage needs all channels */
        int64_t parts = (int64_t)threads * TASKS_A_THREAD / tile_parts(threads);
        return std::max<int64_t>(1, std::min<int64_t>(parts, stages[0].channels() / LEAST_CHANNELS));
    }

    std::vector<Stage> stages;
    int64_t count;
};

class Product final : public Operation {
  public:
    explicit Product(const fggp_conv &spec) : spec(spec) {}

    int tasks(int threads) const override {
        return (int)std::max<int64_t>(1, std::min<int64_t>(threads * TASKS_A_THREAD, spec.out.channels / LEAST_CHANNELS));
    }

    void run(int task, int tasks, const Call &, float *) const override {
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

Operation *new_convolution(const fggp_conv *chain, int length) { return new Convolution(chain, length); }
Operation *new_product(const fggp_conv &spec) { return new Product(spec); }

} // namespace fggp
