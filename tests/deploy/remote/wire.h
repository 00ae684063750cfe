/* What client.cpp and server.cpp say to each other, over a pair of pipes between processors of one byte order. */
#ifndef FGGP_WIRE_H
#define FGGP_WIRE_H

#include <fggp.h>
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <vector>

enum Request : int32_t { BUILD, LOAD, LOAD_BYTES, RUN, FREE };

/* An array with all that belongs to it. */
struct OwnArray {
    std::string name;
    std::vector<int64_t> shape;
    std::string data;
    int32_t type;
    fggp_array array() const { return {name.c_str(), type, (int32_t)shape.size(), shape.data(), data.data()}; }
};

class Wire {
  public:
    FILE *from, *to;

    template <class Number> void put(Number number) { write(&number, sizeof number); }
    template <class Number> Number get() {
        Number number;
        read(&number, sizeof number);
        return number;
    }
    void put_bytes(const void *bytes, int64_t size) {
        put(size);
        write(bytes, (size_t)size);
    }
    std::string get_bytes() {
        std::string bytes((size_t)get<int64_t>(), 0);
        read(&bytes[0], bytes.size());
        return bytes;
    }
    void put_text(const char *text) { put_bytes(text, (int64_t)std::string(text).size()); }
    void put_arrays(const fggp_array *arrays, int32_t count) {
        static const int BYTES[] = {4, 8, 1, 1, 1}; /* of F32, I64, BOOL, U8 and I8 */
        put(count);
        for (const fggp_array *one = arrays; one < arrays + count; one++) {
            put_text(one->name);
            put(one->type);
            put_bytes(one->shape, one->rank * (int64_t)sizeof *one->shape);
            int64_t size = BYTES[one->type];
            for (int32_t i = 0; i < one->rank; i++) size *= one->shape[i];
            put_bytes(one->data, size);
        }
    }
    std::vector<OwnArray> get_arrays() {
        std::vector<OwnArray> arrays((size_t)get<int32_t>());
        for (OwnArray &one : arrays) {
            one.name = get_bytes();
            one.type = get<int32_t>();
            std::string shape = get_bytes();
            one.shape.assign((const int64_t *)shape.data(), (const int64_t *)(shape.data() + shape.size()));
            one.data = get_bytes();
        }
        return arrays;
    }
    void send() { fflush(to); }

  private:
    void read(void *bytes, size_t size) {
        if (fread(bytes, 1, size, from) != size) exit(feof(from) ? 0 : 1); /* the other process has ended */
    }
    void write(const void *bytes, size_t size) { fwrite(bytes, 1, size, to); }
};

inline std::vector<fggp_array> views(const std::vector<OwnArray> &arrays) {
    std::vector<fggp_array> found;
    for (auto &one : arrays) found.push_back(one.array());
    return found;
}
#endif
