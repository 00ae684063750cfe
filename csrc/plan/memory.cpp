#include "plan/memory.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define FGGP_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FGGP_ADDRESS_SANITIZER 1
#endif
#endif
#if FGGP_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__linux__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace fggp {
namespace {

constexpr int64_t CACHE_LINE = 64, HUGE_PAGE = 2 << 20; /* bytes */
constexpr int64_t HUGE_FROM = 128 << 10;                 /* a smaller block is no huge page */
constexpr int64_t GUARD = 256;                          /* bytes before and after each storage, for tests */

/* For each storage, the last step that uses it; the number of steps for those that are kept; -1 if none does. */
std::vector<int> last_uses(const std::vector<Step> &steps, size_t storages, const std::vector<int> &outputs) {
    std::vector<int> last(storages, -1);
    for (size_t i = 0; i < steps.size(); i++)
        for (int storage : used_by(steps[i])) last[storage] = (int)i;
    for (int storage : outputs) last[storage] = (int)steps.size();
    return last;
}

/* How many bytes there can be at most. */
int64_t machine_memory() {
    constexpr int64_t ADDRESSABLE = (int64_t)std::min<uint64_t>(SIZE_MAX / 2, INT64_MAX / 2) - 2 * HUGE_PAGE;
#if defined(__linux__) || defined(__APPLE__)
    static const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    if (pages > 0 && page > 0 && pages < ADDRESSABLE / page) return pages * page;
#endif
    return ADDRESSABLE;
}

} // namespace

std::vector<int> used_by(const Step &step) {
    std::vector<int> used = step.reads;
    used.insert(used.end(), step.writes.begin(), step.writes.end());
    return used;
}

NoMemory::NoMemory(int64_t bytes) {
    snprintf(text, sizeof text, "out of memory: it needs %lld MB for these inputs", (long long)(bytes / 1000000 + 1));
}

Block::Block(int64_t bytes) {
    const int64_t wanted = bytes;
    /* Planes are so far apart that each would lie in small pages of its own, also in a block that fills part of one. */
    int64_t align = CACHE_LINE;
    if (bytes > machine_memory()) throw NoMemory(wanted);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_FROM) {
        align = HUGE_PAGE;
        bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    }
#endif
    allocated = calloc((size_t)(bytes + align), 1);
    if (!allocated) throw NoMemory(wanted);
    data = (char *)(((uintptr_t)allocated + align - 1) / align * align);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (align == HUGE_PAGE) madvise(data, (size_t)bytes, MADV_HUGEPAGE);
#endif
}
Block::~Block() { free(allocated); }

std::vector<int> overwritten_storages(const std::vector<Step> &steps, const std::vector<Storage> &storages,
                                      const std::vector<int> &outputs) {
    std::vector<int> last = last_uses(steps, storages.size(), outputs);
    std::vector<int> overwritten(storages.size(), -1);
    std::vector<bool> seen(storages.size()), taken(storages.size());
    for (size_t i = 0; i < steps.size(); i++) {
        std::vector<int> used = used_by(steps[i]);
        for (int storage : used) {
            int source = storages[storage].may_overwrite;
            if (seen[storage] || source < 0 || taken[source] || overwritten[storage] >= 0) continue;
            if (last[source] == (int)i && std::count(used.begin(), used.end(), source) == 1) {
                overwritten[storage] = source;
                taken[source] = true;
            }
        }
        for (int storage : used) seen[storage] = true;
    }
    return overwritten;
}

Memory::Memory(const std::vector<Step> &steps, const std::vector<Storage> &storages, const std::vector<int> &outputs,
               bool separate)
    : separate(separate), storages(storages), offsets(storages.size(), -1), sizes(storages.size()) {
    std::vector<int> last = last_uses(steps, storages.size(), outputs);
    std::vector<int> overwritten(storages.size(), -1);
    if (!separate) overwritten = overwritten_storages(steps, storages, outputs);
    std::vector<bool> reused(storages.size()), released(storages.size());
    for (int source : overwritten)
        if (source >= 0) reused[source] = true;
    std::vector<Free> free;
    for (size_t i = 0; i < steps.size(); i++) {
        std::vector<int> used = used_by(steps[i]);
        for (int storage : used) {
            if (offsets[storage] >= 0) continue;
            int source = overwritten[storage];
            if (source >= 0) {
                offsets[storage] = offsets[source];
                sizes[storage] = sizes[source];
            } else
                offsets[storage] = allocate(storage, free);
        }
        for (int storage : used) {
            if (separate || last[storage] != (int)i || reused[storage] || released[storage]) continue;
            released[storage] = true;
            release(storage, free);
        }
    }
    block = std::make_unique<Block>(bytes);
    for (size_t i = 0; i < storages.size(); i++) /* only storages of its layout take a padded one's memory */
        if (offsets[i] >= 0 && storages[i].layout.padding && storages[i].layout.padded())
            memset(block->data + offsets[i], storages[i].layout.padding, (size_t)storages[i].bytes);
#if FGGP_ADDRESS_SANITIZER
    for_guards([](char *first, int64_t size) { __asan_poison_memory_region(first, (size_t)size); });
#else
    for_guards([](char *first, int64_t size) { std::fill_n((float *)first, size / sizeof(float), NAN); });
#endif
}

Memory::~Memory() {
#if FGGP_ADDRESS_SANITIZER
    for_guards([](char *first, int64_t size) { __asan_unpoison_memory_region(first, (size_t)size); });
#endif
}

template <class Action> void Memory::for_guards(const Action &action) const {
    for (size_t i = 0; separate && i < storages.size(); i++) {
        if (offsets[i] < 0) continue;
        int64_t end = offsets[i] + (storages[i].bytes + 3) / 4 * 4;
        action(block->data + offsets[i] - GUARD, GUARD);
        action(block->data + end, offsets[i] + sizes[i] + GUARD - end);
    }
}

void Memory::check_guards() const {
#if !FGGP_ADDRESS_SANITIZER
    for_guards([](char *first, int64_t size) {
        auto *floats = (const float *)first;
        for (int64_t i = 0; i < size / (int64_t)sizeof(float); i++)
            if (!std::isnan(floats[i])) throw Refused("a defect of fggp: an operation wrote beyond its tensor");
    });
#endif
}

int64_t Memory::allocate(int storage, std::vector<Free> &free) {
    const Storage &wanted = storages[storage];
    int64_t needed = (wanted.bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    sizes[storage] = needed;
    if (needed > INT64_MAX / 4 - bytes) throw NoMemory(INT64_MAX / 4);
    if (separate) {
        bytes += needed + 2 * GUARD;
        return bytes - needed - GUARD;
    }
    auto best = free.end();
    for (auto one = free.begin(); one != free.end(); one++) {
        bool fits = one->bytes >= needed &&
                    (one->layout < 0 ? !wanted.layout.padded() : storages[one->layout].layout == wanted.layout);
        if (fits && (best == free.end() || one->bytes < best->bytes)) best = one;
    }
    if (best == free.end()) {
        bytes += needed;
        return bytes - needed;
    }
    Free found = *best;
    free.erase(best);
    if (found.bytes > needed) free.push_back({found.offset + needed, found.bytes - needed, found.layout});
    return found.offset;
}

void Memory::release(int storage, std::vector<Free> &free) {
    Free freed = {offsets[storage], sizes[storage], storages[storage].layout.padded() ? storage : -1};
    for (size_t i = 0; freed.layout < 0 && i < free.size();) { /* join with the neighbours */
        Free &other = free[i];
        if (other.layout >= 0 || (other.offset + other.bytes != freed.offset && freed.offset + freed.bytes != other.offset)) {
            i++;
            continue;
        }
        freed.offset = std::min(freed.offset, other.offset);
        freed.bytes += other.bytes;
        free.erase(free.begin() + i);
    }
    free.push_back(freed);
}

} // namespace fggp
