#include "network/types.h"

namespace fggp {

int64_t bytes_of(Type type) { return type == Type::F32 ? 4 : type == Type::I64 ? 8 : 1; }

const char *name_of(Type type) {
    static const char *const NAMES[] = {"F32", "I64", "BOOL", "U8", "I8"};
    return NAMES[(int)type];
}

Type type_named(const std::string &name) {
    for (Type type : {Type::F32, Type::I64, Type::BOOL, Type::U8, Type::I8})
        if (name == name_of(type)) return type;
    throw Refused("the type " + name.substr(0, 40) + " is not F32, I64, BOOL, U8 or I8");
}

int64_t count_of(const Shape &shape) {
    constexpr int64_t MOST = int64_t(1) << 37; /* elements, of 8 bytes */
    if (shape.size() > RANK_MAX)
        throw Refused("a tensor cannot have " + std::to_string(shape.size()) + " dimensions; " + std::to_string(RANK_MAX) + " are the most");
    int64_t count = 1;
    bool empty = false;
    for (int64_t size : shape) {
        if (size < 0) throw Refused("a tensor cannot have the shape " + text_of(shape));
        if (size == 0) empty = true;
        else if (count > MOST / size) throw Refused("a tensor of the shape " + text_of(shape) + " is too large");
        else count *= size;
    }
    return empty ? 0 : count;
}

std::string text_of(const Shape &shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

std::string text_of(const TensorType &type) { return std::string(name_of(type.type)) + " " + text_of(type.shape); }

} // namespace fggp
