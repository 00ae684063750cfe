/* Finds, from a mask, what each product of a layer multiplies. */
#include <algorithm>

#include "threads/parallel.h"
#include "training/products.h"
#include "vectors.h"

namespace fggp {
namespace {

/* A pack stays in the second-level cache while all output channels read it. */
constexpr int64_t PACK_BYTES = 3 << 18;
constexpr int BOTH[] = {0, 1};

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int floor_div(int a, int b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

/* How many images a pack holds, and how many rows. */
void choose_pack(Direction &direction, int rows, int columns) {
    const Reading &in = direction.in;
    auto packed_rows = [&](int band) { return (band - 1) * in.stride[0] + in.extent[0]; };
    direction.row = (columns - 1) * in.stride[1] + in.extent[1];
    auto bytes = [&](int band) { return 4LL * LANES * direction.vectors * in.channels * direction.row * packed_rows(band); };
    /* A single pixel gives few sums, so that more images have to. */
    direction.vectors = rows * columns == 1 ? 8 : 2;
    while (direction.vectors > 2 && bytes(1) > PACK_BYTES) direction.vectors /= 2;
    direction.band = rows;
    while (direction.band > 1 && bytes(direction.band) > PACK_BYTES) direction.band = ceil_div(direction.band, 2);
    direction.plane = packed_rows(direction.band) * direction.row;
}

/* Calls use(row of the weight, column of the weight, window's row, window's column, index) for each active weight, where
 * the rows are output channels, or input channels if `transposed`; row by row. */
template <class Use> void for_each_active(const fggp_convolved &layer, const uint8_t *mask, bool transposed, const Use &use) {
    const int sizes[] = {layer.out_channels, layer.in_channels};
    for (int row = 0; row < sizes[transposed]; row++)
        for (int column = 0; column < sizes[!transposed]; column++)
            for (int i = 0; i < layer.kernel[0]; i++)
                for (int j = 0; j < layer.kernel[1]; j++) {
                    const int64_t *strides = layer.weight_strides;
                    int64_t index = row * strides[transposed] + column * strides[!transposed] + i * strides[2] + j * strides[3];
                    if (mask[index]) use(row, column, i, j, index);
                }
}

int output_size(const fggp_convolved &layer, int d) {
    return (layer.size[d] + 2 * layer.padding[d] - layer.dilation[d] * (layer.kernel[d] - 1) - 1) / layer.stride[d] + 1;
}

Direction forward(const fggp_convolved &layer, const uint8_t *mask) {
    Direction to{};
    to.in.channels = layer.in_channels;
    to.channels = layer.out_channels;
    Grid grid{};
    for (int d : BOTH) {
        to.in.size[d] = layer.size[d];
        to.in.stride[d] = layer.stride[d];
        to.in.first[d] = -layer.padding[d];
        to.in.extent[d] = layer.dilation[d] * (layer.kernel[d] - 1) + 1;
        to.size[d] = grid.size[d] = output_size(layer, d);
        to.step[d] = 1;
    }
    choose_pack(to, grid.size[0], grid.size[1]);
    const int images = to.vectors * LANES;
    grid.starts.assign(to.channels + 1, 0);
    for_each_active(layer, mask, false, [&](int out, int in, int i, int j, int64_t index) {
        int64_t pixel = (int64_t)in * to.plane + i * layer.dilation[0] * to.row + j * layer.dilation[1];
        grid.taps.push_back({(int32_t)(pixel * images), (int32_t)index});
        grid.starts[out + 1] = (int64_t)grid.taps.size();
    });
    for (int i = 0; i < to.channels; i++) grid.starts[i + 1] = std::max(grid.starts[i], grid.starts[i + 1]);
    to.grids.push_back(std::move(grid));
    return to;
}

/* Input pixel y is read by output pixel (y + padding - dilation · i) / stride for row i of the window, if that is whole. */
Direction backward(const fggp_convolved &layer, const uint8_t *mask) {
    Direction to{};
    to.in.channels = layer.out_channels;
    to.channels = layer.in_channels;
    int rows[2];
    for (int d : BOTH) {
        const int farthest = layer.dilation[d] * (layer.kernel[d] - 1);
        to.in.size[d] = output_size(layer, d);
        to.in.stride[d] = 1;
        to.in.first[d] = floor_div(layer.padding[d] - farthest, layer.stride[d]);
        to.in.extent[d] = floor_div(layer.stride[d] - 1 + layer.padding[d], layer.stride[d]) - to.in.first[d] + 1;
        to.size[d] = layer.size[d];
        to.step[d] = layer.stride[d];
        rows[d] = ceil_div(layer.size[d], layer.stride[d]);
    }
    choose_pack(to, rows[0], rows[1]);
    for (int a = 0; a < std::min(to.step[0], to.size[0]); a++)
        for (int b = 0; b < std::min(to.step[1], to.size[1]); b++) {
            Grid grid{};
            grid.start[0] = a, grid.start[1] = b;
            for (int d : BOTH) grid.size[d] = ceil_div(to.size[d] - grid.start[d], to.step[d]);
            grid.starts.assign(to.channels + 1, 0);
            to.grids.push_back(std::move(grid));
        }
    const int images = to.vectors * LANES, across = std::min(to.step[1], to.size[1]);
    for_each_active(layer, mask, true, [&](int in, int out, int i, int j, int64_t index) {
        const int window[] = {i, j};
        int start[2], from[2];
        for (int d : BOTH) {
            const int shift = layer.padding[d] - layer.dilation[d] * window[d];
            start[d] = shift >= 0 ? (to.step[d] - shift % to.step[d]) % to.step[d] : -shift % to.step[d];
            from[d] = floor_div(start[d] + shift, to.step[d]) - to.in.first[d];
            if (start[d] >= to.size[d]) return; /* no pixel of so small an input */
        }
        Grid &grid = to.grids[start[0] * across + start[1]];
        int64_t pixel = (int64_t)out * to.plane + from[0] * to.row + from[1];
        grid.taps.push_back({(int32_t)(pixel * images), (int32_t)index});
        grid.starts[in + 1] = (int64_t)grid.taps.size();
    });
    for (Grid &grid : to.grids)
        for (int i = 0; i < to.channels; i++) grid.starts[i + 1] = std::max(grid.starts[i], grid.starts[i + 1]);
    return to;
}

} // namespace
} // namespace fggp

using namespace fggp;

int32_t fggp_products_make(const fggp_convolved *layer, const uint8_t *mask, fggp_products **made) {
    *made = nullptr;
    return without_throwing([&] { *made = new fggp_products{forward(*layer, mask), backward(*layer, mask)}; });
}

void fggp_products_free(fggp_products *products) { delete products; }
