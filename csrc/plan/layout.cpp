#include "plan/layout.h"

#include <algorithm>
#include <tuple>

#include "vectors.h"

namespace fggp {
namespace {

/* The smallest distance in bytes between two pixels of a group that a weight's offset cannot express. */
constexpr int64_t OFFSET_LIMIT = int64_t(1) << 31;
/* Sizes and margins below these keep all products of them within 64 bits. */
constexpr int64_t SIZE_LIMIT = int64_t(1) << 28;

int64_t rounded_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

} // namespace

bool ImageSizes::operator==(const ImageSizes &other) const {
    return std::tie(images, channels, height, width) ==
           std::tie(other.images, other.channels, other.height, other.width);
}

bool can_read(const Shape &shape, Kind kind) {
    size_t rank = shape.size();
    if (kind == Kind::IMAGES && (rank < 2 || rank > 4)) return false;
    if (kind == Kind::CHANNELS_LAST && (rank < 3 || rank > 4)) return false;
    if (kind == Kind::TOKENS && rank < 2) return false;
    for (int64_t size : shape)
        if (size < 1 || size >= SIZE_LIMIT) return false;
    ImageSizes sizes = image_sizes(shape, kind);
    return sizes.width < SIZE_LIMIT;
}

ImageSizes image_sizes(const Shape &shape, Kind kind) {
    size_t rank = shape.size();
    if (kind == Kind::TOKENS) return {1, shape.back(), 1, count_of(Shape(shape.begin(), shape.end() - 1))};
    Shape plane = kind == Kind::IMAGES ? Shape(shape.begin() + 2, shape.end()) : Shape(shape.begin() + 1, shape.end() - 1);
    int64_t channels = kind == Kind::IMAGES ? shape[1] : shape[rank - 1];
    return {shape[0], channels, plane.size() == 2 ? plane[0] : 1, plane.empty() ? 1 : plane.back()};
}

int channel_dimension(const Shape &shape, Kind kind) { return kind == Kind::IMAGES ? 1 : (int)shape.size() - 1; }

fggp_strides pixel_strides(const Shape &shape, Kind kind) {
    ImageSizes sizes = image_sizes(shape, kind);
    int64_t image = sizes.channels * sizes.pixels();
    if (kind == Kind::IMAGES) return {image, sizes.pixels(), sizes.width, 1};
    return {image, 1, sizes.width * sizes.channels, sizes.channels};
}

void Margin::include(const Margin &other) {
    rows = std::max(rows, other.rows);
    columns = std::max(columns, other.columns);
    reach_rows = std::max(reach_rows, other.reach_rows);
    reach_columns = std::max(reach_columns, other.reach_columns);
}

bool ActivationLayout::exceeds_offsets() const { return channels * plane * lanes * 4 >= OFFSET_LIMIT; }

bool ActivationLayout::too_large() const {
    constexpr int64_t PLANE_LIMIT = int64_t(1) << 29;
    return plane >= PLANE_LIMIT || lead >= PLANE_LIMIT || tail >= PLANE_LIMIT || row >= PLANE_LIMIT ||
           (double)groups * channels * plane * lanes >= (double)(int64_t(1) << 38);
}

fggp_tensor ActivationLayout::tensor(float *memory) const {
    return {memory + lead * lanes, (int32_t)lanes, (int32_t)groups, (int32_t)channels, (int32_t)height, (int32_t)width,
            row, plane, channels * plane};
}

bool ActivationLayout::operator==(const ActivationLayout &other) const {
    return std::tie(lanes, groups, channels, height, width, row, plane, lead, tail, padding) ==
           std::tie(other.lanes, other.groups, other.channels, other.height, other.width, other.row, other.plane,
                    other.lead, other.tail, other.padding);
}

ActivationLayout choose_layout(const ImageSizes &sizes, int lanes, const Margin &margin, int64_t row) {
    ActivationLayout layout;
    layout.lanes = lanes;
    layout.groups = (sizes.images + lanes - 1) / lanes;
    layout.channels = sizes.channels;
    layout.height = sizes.height;
    layout.width = sizes.width;
    layout.row = row ? row : sizes.width + margin.columns;
    layout.plane = (sizes.height + margin.rows) * layout.row + margin.columns;
    layout.lead = margin.rows * layout.row + margin.columns;
    if (lanes > 1) {
        /* An odd distance: planes an even number of cache lines apart would compete for the same few sets of the
         * caches. */
        layout.plane |= 1;
        return layout;
    }
    layout.tail = margin.reach_rows * layout.row + margin.reach_columns + LANES;
    if (sizes.pixels() > 1) {
        layout.plane = (rounded_up(layout.plane, LANES) / LANES | 1) * LANES;
        layout.lead = rounded_up(layout.lead, LANES);
    }
    return layout;
}

} // namespace fggp
