#include <algorithm>
#include <atomic>
#include <cstring>

#include "fggp.h"
#include "threads/parallel.h"

using namespace fggp;

namespace {

constexpr int64_t TASK = 1 << 18; /* bytes that a thread takes at a time */

/* The stretches of some tensors, for any number of threads to share. */
template <class Tensor> class Stretches {
  public:
    Stretches(const Tensor *tensors, int32_t count) : tensors(tensors) {
        for (int32_t i = 0; i < count; i++) tasks += tasks_of(tensors[i]);
    }

    /* Call use(tensor, start, end) for one stretch after the other, each on one thread only, until it returns false. */
    template <class Use> void each(const Use &use) {
        int64_t before = 0; /* tasks in the tensors that are behind */
        int32_t i = 0;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            for (; task >= before + tasks_of(tensors[i]); i++) before += tasks_of(tensors[i]);
            int64_t length = length_of(tensors[i]), start = (task - before) * length;
            if (!use(tensors[i], start, std::min(start + length, tensors[i].count))) break;
        }
    }

    int64_t tasks = 0;

  private:
    static int64_t length_of(const Tensor &tensor) { return TASK / tensor.bytes; }
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
    Stretches<fggp_masked> stretches;

    void work() {
        stretches.each([](const fggp_masked &t, int64_t start, int64_t end) {
            auto of_size = t.bytes == 8   ? zero<uint64_t>
                           : t.bytes == 4 ? zero<uint32_t>
                           : t.bytes == 2 ? zero<uint16_t>
                                          : zero<uint8_t>;
            of_size(t.data, t.mask, start, end);
            return true;
        });
    }
};

/* Inf and NaN are the numbers whose exponent is all ones. */
template <class Bits> bool finite(const void *data, Bits exponent, int64_t start, int64_t end) {
    const Bits *bits = (const Bits *)data;
    Bits some = 0;
    for (int64_t i = start; i < end; i++) some |= (bits[i] & exponent) == exponent;
    return !some;
}

struct Finite {
    Stretches<fggp_numbers> stretches;
    std::atomic<bool> yes{true};

    void work() {
        stretches.each([&](const fggp_numbers &t, int64_t start, int64_t end) {
            bool fine = t.bytes == 8   ? finite<uint64_t>(t.data, t.exponent, start, end)
                        : t.bytes == 4 ? finite<uint32_t>(t.data, (uint32_t)t.exponent, start, end)
                                       : finite<uint16_t>(t.data, (uint16_t)t.exponent, start, end);
            if (!fine) yes.store(false, std::memory_order_relaxed);
            return yes.load(std::memory_order_relaxed);
        });
    }
};

template <class Pass> int32_t run(Pass &pass, int32_t threads) {
    Work work = [](void *context, int, int) { ((Pass *)context)->work(); };
    threads = (int32_t)std::min<int64_t>(threads, pass.stretches.tasks);
    return without_throwing([&] { run_on_threads(work, &pass, threads); });
}

} // namespace

extern "C" {

int32_t fggp_zero(const fggp_masked *tensors, int32_t count, int32_t threads) {
    Zero pass{{tensors, count}};
    return run(pass, threads);
}

int32_t fggp_finite(const fggp_numbers *tensors, int32_t count, int32_t threads, int32_t *yes) {
    Finite pass{{tensors, count}};
    if (run(pass, threads)) return 1;
    *yes = pass.yes;
    return 0;
}
}
