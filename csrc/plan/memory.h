/* Memory for all activations and tensors of one plan: the place of each, and which overwrite others. */
#ifndef FGGP_PLAN_MEMORY_H
#define FGGP_PLAN_MEMORY_H

#include <algorithm>
#include <map>
#include <new>
#include <vector>

#include "plan/steps.h"

namespace fggp {

/* Memory that ran out, with how much was asked for. */
class NoMemory final : public std::bad_alloc {
  public:
    explicit NoMemory(int64_t bytes);
    const char *what() const noexcept override { return text; }

  private:
    char text[80];
};

/* Memory that is zero at first, in huge pages where the system has them. */
class Block {
  public:
    /* Throws NoMemory, also if the machine does not have so much: some systems give any amount, and end the process when
     * it is used. */
    explicit Block(int64_t bytes);
    ~Block();
    Block(const Block &) = delete;
    Block &operator=(const Block &) = delete;
    char *data;

  private:
    void *allocated;
};

/* Entries of weights one after another, in huge pages: a run reads each once, and small pages would take more time. */
class Entries {
  public:
    explicit Entries(int64_t count) : block(count * (int64_t)sizeof(fggp_entry)) {}
    /* A copy, which stays. All copies together have at most `count` entries. */
    const fggp_entry *keep(const std::vector<fggp_entry> &entries) {
        auto *first = (fggp_entry *)block.data + used;
        std::copy(entries.begin(), entries.end(), first);
        used += entries.size();
        return first;
    }

  private:
    Block block;
    size_t used = 0;
};

/* For each storage that is written in place, the one that it overwrites; -1: none. Each names a candidate in
 * `may_overwrite`. The candidate is overwritten if no later step uses it and this step uses it only once: in a chain, a
 * second product could read it after the first one has written. */
std::vector<int> overwritten_storages(const std::vector<Step> &, const std::vector<Storage> &,
                                      const std::vector<int> &outputs);

/* A storage goes into free memory, or it overwrites an input of the step that writes it. Memory with padding is reused
 * only by a storage of the same layout: kernels write only pixels, so that the padding stays zero. */
class Memory final : public Locations {
  public:
    /* outputs: storages that are kept to the end. separate: reuse nothing, and guard what lies before and after each
     * storage with NaN, or with the address sanitizer; slow, for tests. */
    Memory(const std::vector<Step> &, const std::vector<Storage> &, const std::vector<int> &outputs, bool separate);
    ~Memory();

    /* Throws Refused: a guard was written to. */
    void check_guards() const;

    float *address(int storage) const override { return (float *)(block->data + offsets[storage]); }
    fggp_tensor tensor(int storage) const override { return storages[storage].layout.tensor(address(storage)); }
    int64_t bytes = 0;

  private:
    struct Free {
        int64_t offset, bytes;
        int layout; /* the storage whose layout has padding there; -1: none */
    };
    int64_t allocate(int storage, std::vector<Free> &free);
    void release(int storage, std::vector<Free> &free);
    /* Call `action(first, bytes)` for the two guards of each storage. */
    template <class Action> void for_guards(const Action &action) const;

    const bool separate;

    std::vector<Storage> storages;
    std::vector<int64_t> offsets, sizes;
    std::unique_ptr<Block> block;
};

} // namespace fggp
#endif
