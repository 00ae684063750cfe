/* A reader of JSON for what a network file holds. It is strict, and bounds how deep values are nested. */
#ifndef FGGP_NETWORK_JSON_H
#define FGGP_NETWORK_JSON_H

#include <stdint.h>

#include <string>
#include <utility>
#include <vector>

namespace fggp::json {

class Value {
  public:
    enum Kind { NONE, FLAG, INTEGER, NUMBER, TEXT, LIST, OBJECT };
    Kind kind = NONE;
    bool flag = false;
    int64_t integer = 0;  /* of an INTEGER */
    double number = 0;    /* of an INTEGER or a NUMBER */
    std::string text;     /* UTF-8 */
    std::vector<Value> list;
    std::vector<std::pair<std::string, Value>> object; /* in order; no key twice */

    /* The entry of an object; NULL if this is no object or has no such key. */
    const Value *find(const char *key) const;
};

/* Throws Refused: `what` is no JSON, has a key twice, or is nested more than 32 deep. */
Value parse(const char *text, size_t length, const char *what);
/* A text as it is written in JSON, with quotes. */
std::string quoted(const std::string &text);

} // namespace fggp::json
#endif
