/* Types of numbers, shapes, tensors, and the error that every part of a network's preparation throws. */
#ifndef FGGP_NETWORK_TYPES_H
#define FGGP_NETWORK_TYPES_H

#include <stdint.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fggp {

/* A network, a file or an argument that is refused. The message says what came and what would be right. */
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/* U8 and I8 are the activations and weights of quantised operations, and no other operation reads them. */
enum class Type : int32_t { F32, I64, BOOL, U8, I8 };
int64_t bytes_of(Type);
const char *name_of(Type);            /* as in the file: "F32", … */
Type type_named(const std::string &); /* throws Refused */

typedef std::vector<int64_t> Shape;
constexpr int RANK_MAX = 64; /* bounds loops over pairs of dimensions */
/* The number of elements. Throws Refused if they would take more than 2⁴⁰ bytes, a size is negative, or there are more
 * than RANK_MAX dimensions. */
int64_t count_of(const Shape &);
std::string text_of(const Shape &); /* "[1, 3, 224, 224]" */

struct TensorType {
    Type type = Type::F32;
    Shape shape;
    int64_t count() const { return count_of(shape); }
    int64_t bytes() const { return count() * bytes_of(type); }
    int rank() const { return (int)shape.size(); }
    bool operator==(const TensorType &other) const { return type == other.type && shape == other.shape; }
    bool operator!=(const TensorType &other) const { return !(*this == other); }
};
std::string text_of(const TensorType &); /* "F32 [1, 3, 224, 224]" */

/* A tensor's elements in row-major order, without gaps. */
struct Array {
    TensorType type;
    void *data = nullptr;
    bool constant = false; /* the elements never change, so that an operation may pack them when it is made */
    const float *floats() const { return (const float *)data; }
    float *floats() { return (float *)data; }
    const int64_t *integers() const { return (const int64_t *)data; }
    int64_t *integers() { return (int64_t *)data; }
    const uint8_t *bools() const { return (const uint8_t *)data; }
    uint8_t *bools() { return (uint8_t *)data; }
};

} // namespace fggp
#endif
