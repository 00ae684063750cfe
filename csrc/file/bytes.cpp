#include "file/bytes.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "network/types.h"
#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#endif

namespace fggp {

#if defined(__wasm__) && !defined(__EMSCRIPTEN__) && !defined(__wasi__)
std::vector<uint8_t> read_bytes(const char *) { throw Refused("this build cannot read files; give it the file's bytes (fggp_load_bytes)"); }
#else
namespace {
#ifdef _WIN32
FILE *open_to_read(const char *path) { /* Windows names files in UTF-16 */
    std::vector<wchar_t> wide(strlen(path) + 1);
    return MultiByteToWideChar(CP_UTF8, 0, path, -1, wide.data(), (int)wide.size()) ? _wfopen(wide.data(), L"rb") : nullptr;
}
#else
FILE *open_to_read(const char *path) { return fopen(path, "rb"); }
#endif
} // namespace

std::vector<uint8_t> read_bytes(const char *path) {
    struct Closing {
        FILE *file;
        ~Closing() {
            if (file) fclose(file);
        }
    } opened{open_to_read(path)};
    auto check = [](bool fine) {
        if (!fine) throw Refused(std::string("the file cannot be read: ") + strerror(errno));
    };
    check(opened.file && fseeko(opened.file, 0, SEEK_END) == 0);
    off_t size = ftello(opened.file);
    check(size >= 0 && fseeko(opened.file, 0, SEEK_SET) == 0);
    /* A folder can be opened on some systems, and claims to be as large as anything. */
    uint8_t first[8];
    size_t head = fread(first, 1, sizeof first, opened.file);
    check(!ferror(opened.file));
    std::vector<uint8_t> bytes(std::max((size_t)size, head));
    std::copy(first, first + head, bytes.begin());
    size_t got = head + fread(bytes.data() + head, 1, bytes.size() - head, opened.file);
    check(!ferror(opened.file));
    bytes.resize(got);
    return bytes;
}
#endif

} // namespace fggp
