/* Dense convolutions of images whose tiles read the input where it lies. The input is copied once, with its padding; patches
 * overlap, so copying these would copy each pixel as often as the kernel has weights. */
#include <algorithm>
#include <memory>
#include <vector>

#include "operators/convolution.h"
#include "operators/gemm.h"
#include "operators/pixels.h"
#include "operators/tile.h"

namespace fggp {
namespace {

constexpr int64_t BAND_FLOATS = 96 * 1024;    /* of a band's copy, and of its sums: they fit the second-level cache */
constexpr int64_t MOST_BAND_FLOATS = 1 << 18; /* of one that has a single row of the output */
constexpr double LEAST_USED = 0.7;            /* of the positions of a band: with fewer, patches are faster */
constexpr double LEAST_PRODUCTS = 1 << 17;    /* of a task: with fewer, the copy of its input takes too long */

/* A band: some rows of the output, of all channels. What they read is copied as [channel][row % stride][column % stride]
 * [row / stride][column / stride], with padding. A weight then reads adjoining floats for adjoining output pixels, and
 * also from one output row to the next, with a margin between them: positions of a band are its pixels and margins. */
class Band {
  public:
    explicit Band(const Geometry &g) : g(g) {
        for (int axis : {1, 2}) {
            const int64_t most = (g.kernel[axis] - 1) * g.dilation[axis];
            reach[axis] = most / g.stride[axis];
            residues[axis] = std::min(g.stride[axis], most + 1);
        }
        row = g.out[2] + reach[2];
        rows = 1;
        while (rows < g.out[1] && std::max(floats(), g.filters * positions(rows)) <= BAND_FLOATS) rows++;
        count = up(g.out[1], rows);
        rows = up(g.out[1], count); /* equally large bands */
    }
    int64_t rows, row; /* rows of the output, at most; positions from one row to the next */
    int64_t count;     /* bands of an image */

    int64_t floats() const { return g.channels * plane(); }
    int64_t positions(int64_t rows) const { return up((rows - 1) * row + g.out[2], LANES) * LANES; }

    /* Where each weight reads what it multiplies for the first position. */
    std::vector<int64_t> places() const {
        std::vector<int64_t> all;
        for (int64_t channel = 0; channel < g.channels; channel++)
            for (int64_t i = 0; i < g.kernel[1]; i++)
                for (int64_t j = 0; j < g.kernel[2]; j++) {
                    const int64_t y = i * g.dilation[1], x = j * g.dilation[2];
                    all.push_back(channel * plane() + residue(y % g.stride[1], x % g.stride[2]) + y / g.stride[1] * row +
                                  x / g.stride[2]);
                }
        return all;
    }
    /* Copy what some rows of an image's output read. */
    void copy(const float *image, const Range &out_rows, float *to) const {
        for (int64_t channel = 0; channel < g.channels; channel++, to += plane())
            for (int64_t y = 0; y < residues[1]; y++)
                for (int64_t i = 0; i < out_rows.end - out_rows.begin + reach[1]; i++) {
                    const int64_t in_row = g.input(1, out_rows.begin + i, 0) + y;
                    for (int64_t x = 0; x < residues[2]; x++) {
                        float *out = to + residue(y, x) + i * row;
                        if (in_row < 0 || in_row >= g.in[1])
                            std::fill_n(out, row, 0.0f);
                        else
                            copy_pixels(out, image + (channel * g.in[1] + in_row) * g.in[2], x - g.padding[2], row,
                                        g.stride[2], g.in[2]);
                    }
                }
    }

  private:
    const Geometry &g;
    int64_t reach[AXES], residues[AXES]; /* rows or columns beyond those of the output; remainders that are read */
    int64_t residue(int64_t y, int64_t x) const { return (y * residues[2] + x) * (rows + reach[1]) * row; }
    int64_t plane() const { return residue(residues[1], 0); }
};

class Direct final : public Operation {
  public:
    Direct(const Geometry &geometry, const ConvolutionTensors &t)
        : g(geometry), t(t), activation(t.activation), band(g), places(band.places()), panels{g.filters, g.depth()},
          weights(pack_a({t.weight, g.depth(), 1}, g.filters, g.depth())) {}

    int tasks(int threads) const override {
        if (threads == 1) return 1;
        const double products = (double)g.images * g.filters * g.out_pixels() * g.depth();
        const double most = (double)g.images * band.count * panels.count();
        return (int)std::max(1.0, std::min({products / LEAST_PRODUCTS, 4.0 * threads, most}));
    }
    int64_t scratch() const override { return copy_floats() + g.filters * band.positions(band.rows); }

    /* If there are more tasks than bands, those of one band share its weights. */
    void run(int task, int tasks, const Call &, float *scratch) const override {
        const int64_t bands = g.images * band.count, parts = up(tasks, bands);
        const Range range(bands * parts, task, tasks);
        int64_t copied = -1;
        for (int64_t i = range.begin; i < range.end; i++) {
            const int64_t image = i / parts / band.count;
            const Range rows(g.out[1], i / parts % band.count, band.count), part(panels.count(), i % parts, parts);
            if (i / parts != copied) band.copy(t.x + image * g.channels * g.in_pixels(), rows, scratch);
            copied = i / parts;
            float *sums = scratch + copy_floats();
            multiply(scratch, rows.end - rows.begin, part, sums);
            write(image, rows, Interval(panels.panel(part.begin).begin, panels.panel(part.end - 1).end), sums);
        }
    }

  private:
    int64_t copy_floats() const { return band.floats() + TILE_VECTORS * LANES; } /* the last vectors read beyond the band */

    /* The sums of all positions, for some panels of filters. */
    void multiply(const float *copy, int64_t rows, const Range &part, float *sums) const {
        const int64_t positions = band.positions(rows), first_filter = panels.panel(part.begin).begin;
        for (int64_t chunk = 0; chunk < panels.chunks(); chunk++) {
            const Range k = panels.chunk(chunk);
            for (int64_t position = 0; position < positions; position += TILE_VECTORS * LANES) {
                const int64_t vectors = std::min<int64_t>(TILE_VECTORS, (positions - position) / LANES);
                for (int64_t i = part.begin; i < part.end; i++) {
                    const Range panel = panels.panel(i);
                    const float *b[TILE_VECTORS];
                    float *out[TILE_VECTORS];
                    for (int64_t c = 0; c < vectors; c++) {
                        b[c] = copy + position + c * LANES;
                        out[c] = sums + (panel.begin - first_filter) * positions + position + c * LANES;
                    }
                    tile_of(panel.end - panel.begin, vectors)(k.end - k.begin, weights.data() + panels.place(k, panel), b,
                                                              &places[k.begin], out, positions, chunk > 0);
                }
            }
        }
    }

    /* What becomes of the sums, without the margins. */
    void write(int64_t image, const Range &rows, Interval filters, const float *sums) const {
        const int64_t positions = band.positions(rows.end - rows.begin), count = (rows.end - rows.begin) * g.out[2];
        for (int64_t filter = filters.begin; filter < filters.end; filter++, sums += positions) {
            const int64_t place = (image * g.filters + filter) * g.out_pixels() + rows.begin * g.out[2];
            const vec bias = splat(t.bias ? t.bias[filter] : 0);
            for (int64_t y = 0; y < rows.end - rows.begin; y++)
                for (int64_t x = 0; x < g.out[2]; x += LANES) {
                    const int64_t to = place + y * g.out[2] + x, some = g.out[2] - x;
                    vec sum = load_up_to(sums + y * band.row + x, some) + bias;
                    if (t.residual) sum += load_up_to(t.residual + to, some);
                    if (activation.clamps) sum = activation.clamped(sum);
                    store_up_to(t.out + to, sum, some);
                }
            if (activation.follows) activation.apply(t.out + place, count, nullptr);
        }
    }

    const Geometry g;
    const ConvolutionTensors t;
    const Activation activation;
    const Band band;
    const std::vector<int64_t> places;
    const Panels panels;
    const Packed weights;
};

} // namespace

bool is_direct(const Geometry &g, const ConvolutionTensors &t) {
    const bool flat = g.in[0] == 1 && g.out[0] == 1 && g.kernel[0] == 1 && g.padding[0] == 0;
    if (!t.constant_weight || g.groups != 1 || !flat || g.taps() == 1 || g.depth() == 0) return false;
    const double floats = (double)g.channels * (g.kernel[1] * g.dilation[1] + g.stride[1]) *
                          ((double)g.out[2] * g.stride[2] + g.kernel[2] * g.dilation[2]);
    if (floats > MOST_BAND_FLOATS) return false;
    const Band band(g);
    return band.rows * g.out[2] >= LEAST_USED * band.positions(band.rows);
}

FGGP_ONCE std::unique_ptr<Operation> make_direct(const Geometry &g, const ConvolutionTensors &t) {
    return std::make_unique<Direct>(g, t);
}

} // namespace fggp
