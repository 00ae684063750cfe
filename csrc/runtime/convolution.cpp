#include "runtime/convolution.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "runtime/quantized_tiles.h"
#include "runtime/tiles.h"

namespace fggp {
namespace {

/* Limit of the partial sums that are kept between chunks, so that they stay in the second-level cache. */
constexpr int64_t SCRATCH_FLOATS_MAX = 48 * 1024;
/* Enough tasks that threads which finish early take over the work of a slow one. */
constexpr int TASKS_PER_THREAD = 4;
/* With fewer output channels, a task is not worth reading the inputs again. */
constexpr int64_t MIN_CHANNELS_PER_TASK = 8;

/* One row of a tile: `columns` vectors of output pixels, starting at (y, x) of a group. */
struct TileRow {
    int32_t columns, group, y, x;
};

/* The division of a chain's output into tiles, which all its convolutions share. */
class TileGrid {
  public:
    TileGrid(const fggp_conv *chain, int length) : lanes(chain[0].out.lanes) {
        const fggp_tensor &out = chain[0].out;
        columns = chain[0].tile_columns;
        flat = true;
        for (int i = 0; i < length; i++) flat = flat && (lanes == 1 || is_flat(chain[i]));
        height = flat ? 1 : out.height;
        width = flat ? (out.height - 1) * (int)out.row + out.width : out.width;
        if (lanes == 1) width = (width + LANES - 1) / LANES; /* including the padding between rows, which is masked */
        groups = out.groups;
    }

    std::vector<std::vector<TileRow>> tiles(int max_rows) const {
        std::vector<TileRow> rows;
        for (int x = 0; x < width; x += columns)
            for (int group = 0; group < groups; group++)
                for (int y = 0; y < height; y++) rows.push_back({std::min(columns, width - x), group, y, x});
        if (flat) /* so that neighbours form a tile */
            std::sort(rows.begin(), rows.end(), [](const TileRow &a, const TileRow &b) {
                return std::make_tuple(-a.columns, a.group, a.x) < std::make_tuple(-b.columns, b.group, b.x);
            });
        std::vector<std::vector<TileRow>> all;
        for (const TileRow &row : rows) {
            if (all.empty() || (int)all.back().size() == max_rows || all.back()[0].columns != row.columns)
                all.emplace_back();
            all.back().push_back(row);
        }
        return all;
    }

    /* The offset of a row's first pixel in a tensor, in floats. stride: of the convolution if it reads the tensor, else
     * 1. */
    int64_t offset(const TileRow &row, const fggp_tensor &tensor, int stride) const {
        int64_t step = lanes == 1 ? LANES : (int64_t)lanes * stride;
        return (row.group * tensor.group + (int64_t)row.y * stride * tensor.row) * lanes + row.x * step;
    }

  private:
    static bool is_flat(const fggp_conv &conv) {
        return conv.stride == 1 && conv.in.height == conv.out.height && conv.in.row == conv.out.width &&
               conv.out.row == conv.out.width && (!conv.residual.data || conv.residual.row == conv.out.width);
    }

    bool flat; /* each plane is read as one long row, because its rows have no padding between them */
    int lanes, groups, height, width, columns;
};

/* One convolution of a chain. */
class Stage {
  public:
    Stage(const fggp_conv &spec, const TileGrid &grid, const std::vector<std::vector<TileRow>> &all)
        : spec(spec), activation(spec.activation) {
        if (spec.in.lanes == 1) make_pixel_mask();
        int64_t vectors = 1;
        for (const auto &rows : all) {
            Tile tile{};
            tile.rows = (int32_t)rows.size();
            tile.columns = rows[0].columns;
            for (int r = 0; r < tile.rows; r++) {
                tile.in[r] = grid.offset(rows[r], spec.in, spec.stride);
                tile.out[r] = grid.offset(rows[r], spec.out, 1);
                tile.residual[r] = grid.offset(rows[r], spec.residual, 1);
                tile.mask[r] = (int64_t)rows[r].x * LANES;
            }
            tiles.push_back(tile);
            vectors = std::max<int64_t>(vectors, tile.rows * tile.columns);
        }
        int64_t fitting = SCRATCH_FLOATS_MAX / (vectors * LANES);
        block = std::min<int64_t>(channels(), std::max(MIN_CHANNELS_PER_TASK, fitting / together() * together()));
        scratch = spec.chunks > 1 ? block * vectors * LANES : 0;
    }

    void run(int64_t index, Range channels, float *memory) const {
        const Tile &tile = tiles[index];
        const int stride = spec.in.lanes == 1 ? 1 : spec.stride;
        TileKernel kernel = spec.quantized ? quantized_kernel(*spec.quantized, stride, tile.rows, tile.columns)
                                           : TileKernels<FloatTile>::find(stride, tile.rows, tile.columns);
        Job job{};
        job.in = spec.in.data;
        job.out = spec.out.data;
        job.residual = spec.residual.data;
        job.scratch = memory;
        job.mask = pixel_mask.empty() ? nullptr : pixel_mask.data();
        job.out_plane = spec.out.plane * spec.out.lanes;
        job.residual_plane = spec.residual.plane * spec.residual.lanes;
        job.entries = spec.entries;
        job.bias = spec.bias;
        job.activation = &activation;
        job.quantized = spec.quantized;
        job.prefetch = spec.in.lanes > 1; /* single images are in the caches */
        for (int64_t begin = channels.begin; begin < channels.end; begin += block) {
            job.begin = (int32_t)begin;
            job.end = (int32_t)std::min(begin + block, channels.end);
            for (int chunk = 0; chunk < spec.chunks; chunk++) {
                job.starts = spec.starts + (int64_t)chunk * this->channels();
                job.first = chunk == 0;
                job.last = chunk == spec.chunks - 1;
                kernel(job, tile);
            }
        }
    }

    int64_t channels() const { return spec.quantized ? spec.quantized->channels : spec.out.channels; }
    /* Output channels that one task writes together: the bytes of a block. */
    int64_t together() const { return spec.quantized ? BLOCK : 1; }
    int64_t scratch; /* floats */

  private:
    void make_pixel_mask() {
        pixel_mask.assign(spec.out.height * spec.out.row + LANES, 0);
        for (int y = 0; y < spec.out.height; y++)
            for (int x = 0; x < spec.out.width; x++) pixel_mask[y * spec.out.row + x] = -1;
    }

    fggp_conv spec;
    Activation activation;
    std::vector<Tile> tiles;
    std::vector<int32_t> pixel_mask;
    int64_t block; /* output channels whose partial sums fit the scratch memory */
};

/* A chain of convolutions: each task runs some tiles, or some output channels of a tile, through all of them. */
class Convolution final : public Operation {
  public:
    Convolution(const fggp_conv *chain, int length) {
        TileGrid grid(chain, length);
        bool strided = chain[0].in.lanes > 1 && chain[0].stride > 1; /* the others are pointwise */
        auto tiles = grid.tiles(strided ? std::min(chain[0].tile_rows, MAX_STRIDED_ROWS) : chain[0].tile_rows);
        count = (int64_t)tiles.size();
        for (int i = 0; i < length; i++) stages.emplace_back(chain[i], grid, tiles);
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
                stage.run(tile, channels_of(stage, task % channel_parts, channel_parts), memory);
    }

  private:
    static Range channels_of(const Stage &stage, int64_t part, int64_t parts) {
        const int64_t each = stage.together();
        Range range((stage.channels() + each - 1) / each, part, parts);
        range.begin *= each;
        range.end = std::min(range.end * each, stage.channels());
        return range;
    }

    int64_t tile_parts(int threads) const { return std::min<int64_t>(count, (int64_t)threads * TASKS_PER_THREAD); }

    int64_t channel_parts(int threads) const {
        if (threads == 1 || stages.size() > 1) return 1; /* the next stage needs all channels */
        int64_t parts = (int64_t)threads * TASKS_PER_THREAD / tile_parts(threads);
        return std::max<int64_t>(1, std::min<int64_t>(parts, stages[0].channels() / MIN_CHANNELS_PER_TASK));
    }

    std::vector<Stage> stages;
    int64_t count; /* of tiles */
};

/* A product of a sparse matrix with the features of single images. */
class Product final : public Operation {
  public:
    explicit Product(const fggp_conv &spec) : spec(spec), activation(spec.activation) {}

    int tasks(int threads) const override {
        int64_t most = spec.out.channels / MIN_CHANNELS_PER_TASK;
        return (int)std::max<int64_t>(1, std::min<int64_t>(threads * TASKS_PER_THREAD, most));
    }

    void run(int task, int tasks, const Call &, float *) const override {
        Range channels(spec.out.channels, task, tasks);
        for (int64_t first = channels.begin; first < channels.end; first += LANES)
            for (int image = 0; image < spec.out.groups; image++) {
                int count = (int)std::min<int64_t>(LANES, channels.end - first);
                float sums[LANES] = {};
                for (int i = 0; i < count; i++) sums[i] = sum(image, first + i);
                if (activation.clamps) store(sums, activation.clamped(load(sums)));
                if (activation.follows) activation.apply(sums, LANES, nullptr);
                float *out = spec.out.data + image * spec.out.group + first * spec.out.plane;
                for (int i = 0; i < count; i++) out[i * spec.out.plane] = sums[i];
            }
    }

  private:
    float sum(int image, int64_t channel) const {
        const char *in = (const char *)(spec.in.data + image * spec.in.group);
        const fggp_entry *entry = spec.entries + spec.starts[channel];
        const fggp_entry *end = spec.entries + spec.starts[channel + 1];
        /* four sums, so that an addition need not wait for the previous one */
        float sums[4] = {spec.bias[channel], 0, 0, 0};
        for (; end - entry >= 4; entry += 4)
            for (int k = 0; k < 4; k++) sums[k] += entry[k].value * *(const float *)(in + entry[k].offset);
        for (; entry < end; entry++) sums[0] += entry->value * *(const float *)(in + entry->offset);
        float all = sums[0] + sums[1] + sums[2] + sums[3];
        if (spec.residual.data) all += spec.residual.data[image * spec.residual.group + channel * spec.residual.plane];
        return all;
    }

    fggp_conv spec;
    Activation activation;
};

} // namespace

Operation *new_convolution(const fggp_conv *chain, int length) { return new Convolution(chain, length); }
Operation *new_product(const fggp_conv &spec) { return new Product(spec); }

} // namespace fggp
