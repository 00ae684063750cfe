/* A network: its operations in the order in which they run, and the tensors that it brings.
 *
 * docs/network-file.md describes the same in JSON, and all operators. */
#ifndef FGGP_NETWORK_GRAPH_H
#define FGGP_NETWORK_GRAPH_H

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/kernels.h"
#include "network/json.h"
#include "network/types.h"

namespace fggp {

/* The values of the sizes that inputs leave free, such as N = 8. */
typedef std::map<std::string, int64_t> Sizes;

/* A whole number that may depend on free sizes: 5, "N", or ["*", 2, "N"] with the operators + - * // (rounded down)
 * min max. Throws Refused: it is none of these, names an unknown size, divides by 0 or overflows. */
int64_t evaluate(const json::Value &expression, const Sizes &);

/* Constants with at most this share of non-zero elements are held without their zeros. */
constexpr double SPARSE_FROM = 0.5;

/* A tensor that the network brings. Only the elements that are not zero are held if it is sparse. */
class Constant {
  public:
    std::string name;
    TensorType type;
    bool sparse = false;
    std::vector<uint32_t> positions; /* sparse: of the non-zero elements in row-major order, ascending */
    std::vector<float> values;       /* sparse: these elements. A sparse constant is F32 or I8. */

    /* All elements. They are made when they are first asked for, and kept. */
    const void *dense() const;
    /* Give the elements of a constant that is not sparse: as many bytes as the type says. */
    void set_dense(std::vector<uint8_t> bytes) { elements = std::move(bytes); }
    int64_t nonzeros() const; /* the number of elements that are not zero */

  private:
    mutable std::vector<uint8_t> elements;
};

/* What an operation reads: the value of that number, or a constant, or nothing. */
struct Operand {
    int value = -1;
    const Constant *constant = nullptr;
    bool absent() const { return value < 0 && !constant; }
};

/* An operation. Its attributes are those that docs/network-file.md lists for its operator. */
class Node {
  public:
    std::string op;
    std::string name; /* the place in the model, such as "layer1.0.conv1"; for messages and tables */
    std::vector<Operand> inputs;
    std::vector<int> outputs; /* the numbers of the values that it produces */
    json::Value attributes;

    /* The attributes below throw Refused if they are missing or of another kind; those with a default may be missing. */
    int64_t integer(const char *key) const;
    int64_t integer(const char *key, int64_t otherwise) const;
    double number(const char *key) const; /* also "inf", "-inf" and "nan" */
    double number(const char *key, double otherwise) const;
    bool flag(const char *key, bool otherwise) const;
    const std::string &text(const char *key) const;
    std::string text(const char *key, const char *otherwise) const;
    std::vector<int64_t> integers(const char *key) const;
    /* As many integers as asked for; throws Refused if there are more or fewer. */
    std::vector<int64_t> integers(const char *key, size_t count) const;
    /* A size, or a list of sizes, that may be expressions. */
    int64_t size(const char *key, const Sizes &) const;
    std::vector<int64_t> sizes(const char *key, const Sizes &) const;
    /* An index of a dimension of a tensor of this rank; negative ones count from the end. */
    int dimension(const char *key, int rank) const;
    std::vector<int> dimensions(const char *key, int rank) const; /* ascending order is not required; none twice */
    /* The attribute "activation": a list of its name and its numbers; FGGP_IDENTITY if it is missing. */
    fggp_activation activation() const;
    bool has(const char *key) const { return attributes.find(key) != nullptr; }

    /* Throws Refused: "layer1.0.conv1 (conv): …". */
    [[noreturn]] void refuse(const std::string &why) const;

  private:
    const json::Value &need(const char *key) const;
};

struct Input {
    std::string name;
    Type type = Type::F32;
    json::Value sizes; /* a list of numbers and names of free sizes */
};
struct Output {
    std::string name;
    Operand operand;
};

class Graph {
  public:
    std::vector<Input> inputs; /* input i is value i */
    std::vector<Node> nodes;
    std::vector<Output> outputs;
    int values = 0;
    std::vector<std::unique_ptr<Constant>> constants;
    json::Value plan; /* the description's entry "plan": how plans are made, for tests */

    /* The free sizes that these shapes of the inputs give. Throws Refused: a shape does not fit; it names the input. */
    Sizes sizes_of(const std::vector<TensorType> &given) const;
    /* An entry of `plan`, or "". */
    std::string plan_setting(const char *key) const {
        const json::Value *found = plan.find(key);
        return found ? found->text : "";
    }
};

/* The types of all values, by number, for those of the inputs. Throws Refused: an operator refuses what it would read. */
std::vector<TensorType> infer_types(const Graph &, const std::vector<TensorType> &inputs);

/* Read a network from its description and its constants. Checks that every operation reads only what exists before it,
 * that every constant is there, and that the library knows every operator. If the description has example sizes, the
 * operations are checked with them. Throws Refused. */
std::unique_ptr<Graph> read_graph(const json::Value &description, std::vector<std::unique_ptr<Constant>> constants);

} // namespace fggp
#endif
