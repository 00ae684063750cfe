#include "network/json.h"

#include <algorithm>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "network/types.h"
#include "network/utf8.h"

namespace fggp::json {
namespace {

constexpr int MAX_DEPTH = 32;

class Parser {
  public:
    Parser(const char *text, size_t length, const char *what) : at(text), end(text + length), what(what) {}

    Value document() {
        if (!is_utf8(at, end - at)) fail("it is not UTF-8");
        Value value = next(0);
        skip_spaces();
        if (at != end) fail("something follows its end");
        return value;
    }

  private:
    const char *at, *end;
    const char *what;

    [[noreturn]] void fail(const char *why) { throw Refused(std::string(what) + " is no valid JSON: " + why); }

    void skip_spaces() {
        while (at != end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    }
    bool take(char c) {
        skip_spaces();
        if (at == end || *at != c) return false;
        at++;
        return true;
    }
    bool take_word(const char *word) {
        size_t length = strlen(word);
        if ((size_t)(end - at) < length || memcmp(at, word, length)) return false;
        at += length;
        return true;
    }

    Value next(int depth) {
        if (depth > MAX_DEPTH) fail("it is nested too deep");
        skip_spaces();
        if (at == end) fail("it ends early");
        Value value;
        if (take_word("null")) return value;
        if (take_word("true") || take_word("false")) {
            value.kind = Value::FLAG;
            value.flag = at[-2] == 'u'; /* tr-u-e */
            return value;
        }
        if (*at == '"') {
            value.kind = Value::TEXT;
            value.text = string();
            return value;
        }
        if (take('[')) {
            value.kind = Value::LIST;
            if (take(']')) return value;
            do value.list.push_back(next(depth + 1));
            while (take(','));
            if (!take(']')) fail("a list does not end");
            return value;
        }
        if (take('{')) {
            value.kind = Value::OBJECT;
            if (take('}')) return value;
            do {
                skip_spaces();
                if (at == end || *at != '"') fail("a key is no text");
                std::string key = string();
                if (!take(':')) fail("a key has no value");
                value.object.emplace_back(std::move(key), next(depth + 1));
            } while (take(','));
            if (!take('}')) fail("an object does not end");
            if (has_twin(value)) fail("an object has a key twice");
            return value;
        }
        return number();
    }

    /* Whether an object has a key twice, in a time that its number of keys cannot make long. */
    static bool has_twin(const Value &object) {
        std::vector<const std::string *> keys;
        for (auto &entry : object.object) keys.push_back(&entry.first);
        std::sort(keys.begin(), keys.end(), [](auto *a, auto *b) { return *a < *b; });
        return std::adjacent_find(keys.begin(), keys.end(), [](auto *a, auto *b) { return *a == *b; }) != keys.end();
    }

    Value number() {
        const char *start = at;
        bool whole = true;
        auto digits = [&] {
            const char *first = at;
            while (at != end && *at >= '0' && *at <= '9') at++;
            if (at == first) fail("a value is none");
        };
        if (*at == '-') at++;
        const char *first = at;
        digits();
        if (*first == '0' && at - first > 1) fail("a number begins with 0");
        if (at != end && *at == '.') at++, whole = false, digits();
        if (at != end && (*at == 'e' || *at == 'E')) {
            at++, whole = false;
            if (at != end && (*at == '+' || *at == '-')) at++;
            digits();
        }
        std::string text(start, at);
        if (text.size() > 64) fail("a number is too long");
        Value value;
        value.kind = Value::NUMBER;
        if (whole && std::from_chars(text.data(), text.data() + text.size(), value.integer).ec == std::errc()) {
            value.kind = Value::INTEGER;
            value.number = (double)value.integer;
            return value;
        }
        /* Also a whole number beyond 64 bits. strtod expects the decimal point of the program's locale. */
        size_t point = text.find('.');
        if (point != std::string::npos) text.replace(point, 1, localeconv()->decimal_point);
        value.number = strtod(text.c_str(), nullptr);
        if (!std::isfinite(value.number)) fail("a number is too large");
        return value;
    }

    unsigned hexadecimal() {
        if (end - at < 4) fail("a text does not end");
        unsigned code = 0;
        for (int i = 0; i < 4; i++) {
            char c = *at++;
            int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) fail("a text has a wrong escape");
            code = code * 16 + digit;
        }
        return code;
    }

    std::string string() {
        std::string text;
        at++;
        while (true) {
            if (at == end) fail("a text does not end");
            unsigned char c = *at++;
            if (c == '"') return text;
            if (c < 0x20) fail("a text has a control character");
            if (c != '\\') {
                text += (char)c;
                continue;
            }
            if (at == end) fail("a text does not end");
            switch (*at++) {
            case '"': text += '"'; break;
            case '\\': text += '\\'; break;
            case '/': text += '/'; break;
            case 'b': text += '\b'; break;
            case 'f': text += '\f'; break;
            case 'n': text += '\n'; break;
            case 'r': text += '\r'; break;
            case 't': text += '\t'; break;
            case 'u': append_utf8(text, code_point()); break;
            default: fail("a text has a wrong escape");
            }
        }
    }

    unsigned code_point() {
        unsigned code = hexadecimal();
        if (code < 0xD800 || code > 0xDFFF) return code;
        if (code > 0xDBFF || end - at < 2 || at[0] != '\\' || at[1] != 'u') fail("a text has half a character");
        at += 2;
        unsigned low = hexadecimal();
        if (low < 0xDC00 || low > 0xDFFF) fail("a text has half a character");
        return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }

    static void append_utf8(std::string &text, unsigned code) {
        if (code < 0x80) {
            text += (char)code;
        } else if (code < 0x800) {
            text += (char)(0xC0 | code >> 6);
            text += (char)(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            text += (char)(0xE0 | code >> 12);
            text += (char)(0x80 | (code >> 6 & 0x3F));
            text += (char)(0x80 | (code & 0x3F));
        } else {
            text += (char)(0xF0 | code >> 18);
            text += (char)(0x80 | (code >> 12 & 0x3F));
            text += (char)(0x80 | (code >> 6 & 0x3F));
            text += (char)(0x80 | (code & 0x3F));
        }
    }
};

} // namespace

const Value *Value::find(const char *key) const {
    for (auto &entry : object)
        if (entry.first == key) return &entry.second;
    return nullptr;
}

Value parse(const char *text, size_t length, const char *what) { return Parser(text, length, what).document(); }

std::string quoted(const std::string &text) {
    static const char *const HEX = "0123456789abcdef";
    std::string out = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\')
            out += '\\', out += (char)c;
        else if (c < 0x20)
            out += "\\u00", out += HEX[c >> 4], out += HEX[c & 15];
        else
            out += (char)c;
    }
    return out + "\"";
}

} // namespace fggp::json
