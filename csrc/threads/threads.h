/* A team of threads that spin while they wait for work, because waking a sleeping thread takes longer than a run of
 * small layers. */
#ifndef FGGP_THREADS_H
#define FGGP_THREADS_H

#include <atomic>
#ifndef __wasi__ /* WebAssembly without threads, for which the C++ library has none of these */
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace fggp {

/* A barrier: a thread that waits returns when all threads have arrived. The last one calls `last` before any returns. */
class Barrier {
  public:
    template <class Last> void wait(int threads, const Last &last) {
        int now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            last();
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
        } else
            wait_for_round_after(now);
    }

  private:
    void wait_for_round_after(int now) const;

    std::atomic<int> arrived{0};
    std::atomic<int> round{0};
};

/* The work of thread number `thread` of `threads`. */
typedef void (*Work)(void *context, int thread, int threads);

#ifndef __wasi__
class Team {
  public:
    ~Team();
    /* Start threads until there are `threads`, the caller's included. Returns the number of these that exist, which is
     * smaller if the system gives no more. */
    int start_threads(int threads);
    /* Call work(context, i, threads) for i from 0 to threads - 1 at the same time, 0 on the caller's thread.
     * start_threads() must have returned at least `threads`. */
    void run(Work work, void *context, int threads);

    /* The process's only team. A forked child, which has none of its parent's threads, makes a new one. */
    static Team &instance();

  private:
    void serve(int thread, int seen);

    std::vector<std::thread> members;
    std::mutex run_lock; /* held by a run, so that there is one at a time */
    std::mutex sleep_lock;
    std::condition_variable wake;
    std::atomic<int> run_number{0}; /* a change tells the threads to work */
    std::atomic<int> working{0};  /* threads that have not finished this run */
    std::atomic<int> sleeping{0}; /* threads that must be woken */
    bool stop = false;
    Work work = nullptr;
    void *context = nullptr;
    int run_threads = 0;
};
#endif

} // namespace fggp
#endif
