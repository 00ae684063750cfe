#include "plan/memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fggp {
namespace {

constexpr int64_t CACHE_LINE = 64, HUGE_PAGE = 2 << 20; /* bytes */

/* For each storage, the last step that uses it; the number of steps for those that are kept; -1 if none does. */
std::vector<int> last_uses(const std::vector<Step> &steps, size_t storages, const std::vector<int> &outputs) {
    std::vector<int> last(storages, -1);
    for (size_t i = 0; i < steps.size(); i++)
        for (int storage : used_by(steps[i])) last[storage] = (int)i;
    for (int storage : outputs) last[storage] = (int)steps.size();
    return last;
}

} // namespace

std::vector<int> used_by(const Step &step) {
    std::vector<int> used = step.reads;
    used.insert(used.end(), step.writes.begin(), step.writes.end());
    return used;
}

Block::Block(int64_t bytes) {
    /* Planes are so far apart that each would lie in small pages of its own. */
    int64_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
    if ((uint64_t)bytes > SIZE_MAX / 2 - HUGE_PAGE) throw std::bad_alloc();
    allocated = calloc((size_t)(bytes + align), 1);
    if (!allocated) throw std::bad_alloc();
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
    : storages(storages), offsets(storages.size(), -1), sizes(storages.size()) {
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
}

int64_t Memory::allocate(int storage, std::vector<Free> &free) {
    const Storage &wanted = storages[storage];
    int64_t needed = (wanted.bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    sizes[storage] = needed;
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
