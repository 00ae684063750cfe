#include <algorithm>
#include <atomic>
#include <cstring>

#include "fggp.h"
#include "threads/parallel.h"

using namespace fggp;

namespace {

constexpr int64_t TASK_BYTES = 1 << 18; /* that a thread processes at a time */

/* Some tensors in chunks, which any number of threads share. */
template <class Tensor> class Chunks {
  public:
    Chunks(const Tensor *tensors, int32_t count) : tensors(tensors) {
        for (int32_t i = 0; i < count; i++) tasks += tasks_of(tensors[i]);
    }

    /* Call use(tensor, start, end) for the chunks that this thread takes, until none is left or it returns false. */
    template <class Use> void for_each(const Use &use) {
        int64_t before = 0; /* tasks in the tensors before this one */
        int32_t i = 0;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            for (; task >= before + tasks_of(tensors[i]); i++) before += tasks_of(tensors[i]);
            int64_t length = length_of(tensors[i]), start = (task - before) * length;
            if (!use(tensors[i], start, std::min(start + length, tensors[i].count))) break;
        }
    }

    int64_t tasks = 0;

  private:
    static int64_t length_of(const Tensor &tensor) { return TASK_BYTES / tensor.bytes; }
    static int64_t tasks_of(const Tensor &tensor) {
        return (tensor.count + length_of(tensor) - 1) / length_of(tensor);
    }

    const Tensor *tensors;
    std::atomic<int64_t> next{0};
};

template <class Bits> void zero(void *data, const uint8_t *mask, int64_t start, int64_t end) {
    Bits *bits = (Bits *)data;
    for (int64_t i = start; i < end; i++) bits[i] &= (Bits)0 - (Bits)mask[i];
}

struct Zero {
    Chunks<fggp_masked> chunks;

    void work() {
        chunks.for_each([](const fggp_masked &t, int64_t start, int64_t end) {
            auto zero_numbers = t.bytes == 8   ? zero<uint64_t>
                                : t.bytes == 4 ? zero<uint32_t>
                                : t.bytes == 2 ? zero<uint16_t>
                                               : zero<uint8_t>;
            zero_numbers(t.data, t.mask, start, end);
            return true;
        });
    }
};

/* Whether no number is inf or NaN: these have an exponent that is all ones. */
template <class Bits> bool finite(const void *data, Bits exponent, int64_t start, int64_t end) {
    const Bits *bits = (const Bits *)data;
    Bits found = 0;
    for (int64_t i = start; i < end; i++) found |= (bits[i] & exponent) == exponent;
    return !found;
}

struct Finite {
    Chunks<fggp_numbers> chunks;
    std::atomic<bool> all_finite{true};

    void work() {
        chunks.for_each([&](const fggp_numbers &t, int64_t start, int64_t end) {
            bool chunk_finite = t.bytes == 8   ? finite<uint64_t>(t.data, t.exponent, start, end)
                                : t.bytes == 4 ? finite<uint32_t>(t.data, (uint32_t)t.exponent, start, end)
                                               : finite<uint16_t>(t.data, (uint16_t)t.exponent, start, end);
            if (!chunk_finite) all_finite.store(false, std::memory_order_relaxed);
            return all_finite.load(std::memory_order_relaxed);
        });
    }
};

template <class Pass> int32_t run(Pass &pass, int32_t threads) {
    Work work = [](void *context, int, int) { ((Pass *)context)->work(); };
    threads = (int32_t)std::min<int64_t>(threads, pass.chunks.tasks);
    return without_throwing([&] { run_on_threads(work, &pass, threads); });
}

} // namespace

extern "C" {

int32_t fggp_zero(const fggp_masked *tensors, int32_t count, int32_t threads) {
    Zero pass{{tensors, count}};
    return run(pass, threads);
}

int32_t fggp_finite(const fggp_numbers *tensors, int32_t count, int32_t threads, int32_t *finite) {
    Finite pass{{tensors, count}};
    if (run(pass, threads)) return 1;
    *finite = pass.all_finite;
    return 0;
}
}
