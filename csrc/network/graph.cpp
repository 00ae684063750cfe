#include "network/graph.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "operators/operator.h"

namespace fggp {

using json::Value;

namespace {

constexpr int64_t VERSION = 1; /* of the description */
constexpr int64_t OUTPUTS_MAX = 8; /* of an operation; no operator has more than three */

/* An error in the description itself. */
[[noreturn]] void wrong(const std::string &why) { throw Refused("the network's description is damaged: " + why); }

const Value &need(const Value &object, const char *key, Value::Kind kind, const char *what) {
    const Value *found = object.find(key);
    if (!found || found->kind != kind) wrong(std::string(what) + " has no \"" + key + "\", or one of another kind");
    return *found;
}

/* A later version of the format may give a network entries that change what it computes. */
void check_keys(const Value &object, std::initializer_list<const char *> known, const char *what) {
    for (auto &entry : object.object)
        if (std::none_of(known.begin(), known.end(), [&](const char *key) { return entry.first == key; }))
            wrong(std::string(what) + " has an entry \"" + entry.first.substr(0, 40) + "\", which this version of fggp does not know");
}

/* Callers find inputs and outputs by their names. */
template <class Named> void check_names(const std::vector<Named> &all, const char *what) {
    std::set<std::string> names;
    for (auto &one : all)
        if (!names.insert(one.name).second)
            wrong(std::string("it has two ") + what + " with the name \"" + one.name.substr(0, 80) + "\"");
}

int64_t operate(const std::string &name, int64_t a, int64_t b) {
    int64_t result = 0;
    bool overflows = false;
    if (name == "+") overflows = __builtin_add_overflow(a, b, &result);
    else if (name == "-") overflows = __builtin_sub_overflow(a, b, &result);
    else if (name == "*") overflows = __builtin_mul_overflow(a, b, &result);
    else if (name == "min") result = std::min(a, b);
    else if (name == "max") result = std::max(a, b);
    else if (name == "//") {
        if (b == 0) throw Refused("a size is divided by 0");
        if (b == -1) overflows = __builtin_sub_overflow((int64_t)0, a, &result);
        else result = a / b - (a % b != 0 && (a % b < 0) != (b < 0));
    } else
        wrong("a size has the operator \"" + name.substr(0, 40) + "\"");
    if (overflows) throw Refused("a size is too large");
    return result;
}

} // namespace

int64_t evaluate(const Value &expression, const Sizes &sizes) {
    if (expression.kind == Value::INTEGER) return expression.integer;
    if (expression.kind == Value::TEXT) {
        auto found = sizes.find(expression.text);
        if (found == sizes.end()) wrong("a size depends on \"" + expression.text.substr(0, 40) + "\", which no input has");
        return found->second;
    }
    auto &list = expression.list;
    if (expression.kind != Value::LIST || list.size() < 3 || list[0].kind != Value::TEXT)
        wrong("a size is no number, name or operation");
    int64_t result = evaluate(list[1], sizes);
    for (size_t i = 2; i < list.size(); i++) result = operate(list[0].text, result, evaluate(list[i], sizes));
    return result;
}

const void *Constant::dense() const {
    if (sparse && elements.empty() && type.count()) {
        elements.resize(type.bytes());
        for (size_t i = 0; i < positions.size(); i++) {
            if (type.type == Type::I8) ((int8_t *)elements.data())[positions[i]] = (int8_t)values[i];
            else ((float *)elements.data())[positions[i]] = values[i];
        }
    }
    return elements.data();
}

int64_t Constant::nonzeros() const {
    if (sparse) return (int64_t)values.size();
    int64_t size = bytes_of(type.type), found = 0;
    static const uint8_t ZERO[8] = {};
    for (int64_t i = 0; i < type.count(); i++) found += memcmp(elements.data() + i * size, ZERO, size) != 0;
    return found;
}

void Node::refuse(const std::string &why) const {
    throw Refused((name.empty() ? op : name + " (" + op + ")") + ": " + why);
}

const Value &Node::need(const char *key) const {
    const Value *found = attributes.find(key);
    if (!found) refuse(std::string("it has no \"") + key + "\"");
    return *found;
}

int64_t Node::integer(const char *key) const {
    const Value &value = need(key);
    if (value.kind != Value::INTEGER) refuse(std::string("\"") + key + "\" is no whole number");
    return value.integer;
}
int64_t Node::integer(const char *key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }

static double number_of(const Node &node, const Value &value, const char *key) {
    if (value.kind == Value::INTEGER || value.kind == Value::NUMBER) return value.number;
    if (value.kind == Value::TEXT) {
        if (value.text == "inf") return std::numeric_limits<double>::infinity();
        if (value.text == "-inf") return -std::numeric_limits<double>::infinity();
        if (value.text == "nan") return std::numeric_limits<double>::quiet_NaN();
    }
    node.refuse(std::string("\"") + key + "\" is no number");
}
double Node::number(const char *key) const { return number_of(*this, need(key), key); }
double Node::number(const char *key, double otherwise) const { return has(key) ? number(key) : otherwise; }

bool Node::flag(const char *key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (need(key).kind != Value::FLAG) refuse(std::string("\"") + key + "\" is not true or false");
    return need(key).flag;
}

const std::string &Node::text(const char *key) const {
    if (need(key).kind != Value::TEXT) refuse(std::string("\"") + key + "\" is no text");
    return need(key).text;
}
std::string Node::text(const char *key, const char *otherwise) const { return has(key) ? text(key) : otherwise; }

std::vector<int64_t> Node::integers(const char *key) const {
    const Value &value = need(key);
    if (value.kind != Value::LIST) refuse(std::string("\"") + key + "\" is no list");
    std::vector<int64_t> numbers;
    for (auto &item : value.list) {
        if (item.kind != Value::INTEGER) refuse(std::string("\"") + key + "\" is no list of whole numbers");
        numbers.push_back(item.integer);
    }
    return numbers;
}
std::vector<int64_t> Node::integers(const char *key, size_t count) const {
    auto numbers = integers(key);
    if (numbers.size() != count)
        refuse(std::string("\"") + key + "\" has " + std::to_string(numbers.size()) + " numbers, not " + std::to_string(count));
    return numbers;
}

int64_t Node::size(const char *key, const Sizes &sizes) const { return evaluate(need(key), sizes); }
std::vector<int64_t> Node::sizes(const char *key, const Sizes &sizes) const {
    const Value &value = need(key);
    if (value.kind != Value::LIST) refuse(std::string("\"") + key + "\" is no list");
    std::vector<int64_t> numbers;
    for (auto &item : value.list) numbers.push_back(evaluate(item, sizes));
    return numbers;
}

static int dimension_of(const Node &node, int64_t index, int rank, const char *key) {
    if (index < -rank || index >= rank)
        node.refuse(std::string("\"") + key + "\" is " + std::to_string(index) + ", and the tensor has " + std::to_string(rank) + " dimensions");
    return (int)(index < 0 ? index + rank : index);
}
int Node::dimension(const char *key, int rank) const { return dimension_of(*this, integer(key), rank, key); }
std::vector<int> Node::dimensions(const char *key, int rank) const {
    std::vector<int> found;
    for (int64_t index : integers(key)) {
        int dimension = dimension_of(*this, index, rank, key);
        if (std::find(found.begin(), found.end(), dimension) != found.end()) refuse(std::string("\"") + key + "\" has a dimension twice");
        found.push_back(dimension);
    }
    return found;
}

fggp_activation Node::activation() const {
    /* In the order of the enumeration, with how many numbers each has. */
    static const struct { const char *name; int numbers; } FUNCTIONS[] = {
        {"identity", 0}, {"clamp", 2}, {"leaky_relu", 1}, {"elu", 3}, {"hard_sigmoid", 0}, {"hard_swish", 0},
        {"sigmoid", 0}, {"silu", 0}, {"tanh", 0}, {"gelu", 0}, {"gelu_tanh", 0}, {"mish", 0}};
    fggp_activation activation = {FGGP_IDENTITY, 0, 0, 0};
    if (!has("activation")) return activation;
    const Value &value = need("activation");
    if (value.kind != Value::LIST || value.list.empty() || value.list[0].kind != Value::TEXT) refuse("\"activation\" is no list with a name");
    for (int32_t kind = 0; kind < (int32_t)(sizeof FUNCTIONS / sizeof *FUNCTIONS); kind++) {
        if (value.list[0].text != FUNCTIONS[kind].name) continue;
        if ((int)value.list.size() != 1 + FUNCTIONS[kind].numbers)
            refuse("the activation " + value.list[0].text + " has " + std::to_string(value.list.size() - 1) + " numbers, not " + std::to_string(FUNCTIONS[kind].numbers));
        double numbers[3] = {0, 0, 0};
        for (size_t i = 1; i < value.list.size(); i++) numbers[i - 1] = number_of(*this, value.list[i], "activation");
        return {kind, numbers[0], numbers[1], numbers[2]};
    }
    refuse("there is no activation \"" + value.list[0].text.substr(0, 40) + "\"");
}

Sizes Graph::sizes_of(const std::vector<TensorType> &given) const {
    Sizes sizes;
    if (given.size() != inputs.size())
        throw Refused("the network has " + std::to_string(inputs.size()) + " inputs, not " + std::to_string(given.size()));
    for (size_t i = 0; i < inputs.size(); i++) {
        const Input &input = inputs[i];
        auto &wanted = input.sizes.list;
        std::string text = "[";
        for (size_t d = 0; d < wanted.size(); d++)
            text += (d ? ", " : "") + (wanted[d].kind == Value::TEXT ? wanted[d].text : std::to_string(wanted[d].integer));
        text += "]";
        auto refuse = [&](const std::string &why) {
            throw Refused("the input \"" + input.name + "\" is " + text_of(given[i]) + "; it must be " + name_of(input.type) + " " + text + why);
        };
        if (given[i].type != input.type || given[i].shape.size() != wanted.size()) refuse("");
        for (size_t d = 0; d < wanted.size(); d++) {
            int64_t size = given[i].shape[d];
            if (wanted[d].kind == Value::INTEGER) {
                if (size != wanted[d].integer) refuse("");
            } else {
                auto found = sizes.emplace(wanted[d].text, size).first;
                if (found->second != size) refuse(", where " + wanted[d].text + " is " + std::to_string(found->second));
                if (size < 1) refuse(", where " + wanted[d].text + " is at least 1");
            }
        }
    }
    return sizes;
}

/* Infer the types of all values for example sizes, so that operations that do not fit each other are refused at once. */
static void check_operations(const Graph &graph, const Value &example) {
    if (example.kind != Value::OBJECT) wrong("its example is no object");
    std::vector<TensorType> types;
    for (auto &input : graph.inputs) {
        TensorType type{input.type, {}};
        for (auto &size : input.sizes.list) {
            const Value *value = size.kind == Value::TEXT ? example.find(size.text.c_str()) : &size;
            if (!value || value->kind != Value::INTEGER) wrong("its example has no size \"" + size.text.substr(0, 40) + "\"");
            type.shape.push_back(value->integer);
        }
        type.count(); /* refuses what is too large */
        types.push_back(type);
    }
    infer_types(graph, types);
}

std::vector<TensorType> infer_types(const Graph &graph, const std::vector<TensorType> &inputs) {
    Sizes sizes = graph.sizes_of(inputs);
    std::vector<TensorType> types(graph.values);
    std::copy(inputs.begin(), inputs.end(), types.begin());
    for (auto &node : graph.nodes) {
        InputTypes read;
        for (auto &operand : node.inputs)
            read.push_back(operand.absent() ? nullptr : operand.constant ? &operand.constant->type : &types[operand.value]);
        auto made = inferred(node, read, sizes);
        for (size_t i = 0; i < made.size(); i++) types[node.outputs[i]] = made[i];
    }
    return types;
}

std::unique_ptr<Graph> read_graph(const Value &description, std::vector<std::unique_ptr<Constant>> constants) {
    auto graph = std::make_unique<Graph>();
    std::map<std::string, const Constant *> known;
    for (auto &constant : constants)
        if (!known.emplace(constant->name, constant.get()).second) wrong("it has the tensor \"" + constant->name.substr(0, 80) + "\" twice");
    graph->constants = std::move(constants);
    if (const Value *plan = description.find("plan")) graph->plan = *plan;

    check_keys(description, {"version", "inputs", "nodes", "outputs", "example", "plan"}, "it");
    const Value *version = description.find("version");
    if (version && (version->kind != Value::INTEGER || version->integer != VERSION))
        throw Refused("the network's description has another version than " + std::to_string(VERSION) + ", which this version of fggp reads");

    auto operand = [&](const Value &value) {
        Operand found;
        if (value.kind == Value::INTEGER) {
            if (value.integer < 0 || value.integer >= graph->values) wrong("something reads value " + std::to_string(value.integer) + " before it exists");
            found.value = (int)value.integer;
        } else if (value.kind == Value::TEXT) {
            auto constant = known.find(value.text);
            if (constant == known.end()) wrong("it has no tensor \"" + value.text.substr(0, 80) + "\"");
            found.constant = constant->second;
        } else if (value.kind != Value::NONE)
            wrong("something that an operation reads is no number, name or null");
        return found;
    };

    for (auto &item : need(description, "inputs", Value::LIST, "it").list) {
        Input input;
        check_keys(item, {"name", "type", "shape"}, "an input");
        input.name = need(item, "name", Value::TEXT, "an input").text;
        input.type = type_named(need(item, "type", Value::TEXT, "an input").text);
        input.sizes = need(item, "shape", Value::LIST, "an input");
        for (auto &size : input.sizes.list)
            if (!(size.kind == Value::TEXT || (size.kind == Value::INTEGER && size.integer >= 0))) wrong("an input's shape has a size that is no number or name");
        graph->inputs.push_back(std::move(input));
        graph->values++;
    }
    for (auto &item : need(description, "nodes", Value::LIST, "it").list) {
        Node node;
        node.op = need(item, "op", Value::TEXT, "an operation").text;
        if (const Value *name = item.find("name")) node.name = name->text;
        if (!find_operator(node.op)) throw Refused("the network needs the operator \"" + node.op.substr(0, 40) + "\", which this version of fggp does not have");
        for (auto &value : need(item, "in", Value::LIST, "an operation").list) node.inputs.push_back(operand(value));
        int64_t outputs = 1;
        if (const Value *count = item.find("outputs")) outputs = count->kind == Value::INTEGER ? count->integer : 0;
        if (outputs < 1 || outputs > OUTPUTS_MAX) wrong("an operation has a wrong number of outputs");
        for (int64_t i = 0; i < outputs; i++) node.outputs.push_back(graph->values++);
        node.attributes = item;
        graph->nodes.push_back(std::move(node));
    }
    for (auto &item : need(description, "outputs", Value::LIST, "it").list) {
        check_keys(item, {"name", "value"}, "an output");
        const Value *value = item.find("value");
        if (!value || value->kind == Value::NONE) wrong("an output has no value");
        graph->outputs.push_back({need(item, "name", Value::TEXT, "an output").text, operand(*value)});
    }
    check_names(graph->inputs, "inputs");
    check_names(graph->outputs, "outputs");
    if (const Value *example = description.find("example")) check_operations(*graph, *example);
    return graph;
}

} // namespace fggp
