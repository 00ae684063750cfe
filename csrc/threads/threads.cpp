#include "threads/threads.h"

#ifdef __wasi__
namespace fggp {
void Barrier::wait_for_round_after(int) const {} /* the only thread is always the last */
} // namespace fggp
#else

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fggp {
namespace {

/* A waiting thread spins, then yields its core between looks, then sleeps until the next run. */
constexpr int SPINS_BEFORE_YIELD = 2000;
constexpr std::chrono::microseconds TIME_BEFORE_SLEEP(500);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

Team *team = nullptr;
std::mutex team_lock;

#if defined(__unix__) || defined(__APPLE__)
/* A forked child has none of the team's threads, and the thread that held the lock does not exist to release it. */
void begin_child() {
    new (&team_lock) std::mutex;
    team = nullptr;
}
const int at_fork = pthread_atfork(nullptr, nullptr, begin_child);
#endif

} // namespace

void Barrier::wait_for_round_after(int now) const {
    for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
        spins < SPINS_BEFORE_YIELD ? pause() : std::this_thread::yield();
}

Team &Team::instance() {
    std::lock_guard<std::mutex> lock(team_lock);
    if (!team) team = new Team; /* never deleted: its threads may outlive static objects at exit */
    return *team;
}

int Team::start_threads(int threads) {
    if (threads <= 1) return 1;
    std::lock_guard<std::mutex> lock(run_lock);
    try {
        while ((int)members.size() < threads - 1) {
            int thread = (int)members.size() + 1;
            members.emplace_back(&Team::serve, this, thread, run_number.load());
        }
    } catch (const std::system_error &) { /* the system gives no more threads */
    }
    return std::min(threads, (int)members.size() + 1);
}

void Team::serve(int thread, int seen) {
    for (;;) {
        auto until = std::chrono::steady_clock::now() + TIME_BEFORE_SLEEP;
        for (int spins = 0; run_number.load(std::memory_order_acquire) == seen; spins++) {
            if (spins < SPINS_BEFORE_YIELD) {
                pause();
                continue;
            }
            if (std::chrono::steady_clock::now() < until) {
                std::this_thread::yield();
                continue;
            }
            std::unique_lock<std::mutex> lock(sleep_lock);
            sleeping.fetch_add(1);
            wake.wait(lock, [&] { return run_number.load() != seen; });
            sleeping.fetch_sub(1);
        }
        seen = run_number.load(std::memory_order_acquire);
        if (stop) return;
        if (thread < run_threads) work(context, thread, run_threads);
        working.fetch_sub(1, std::memory_order_acq_rel);
    }
}

void Team::run(Work new_work, void *new_context, int threads) {
    if (threads <= 1) {
        new_work(new_context, 0, 1);
        return;
    }
    std::lock_guard<std::mutex> lock(run_lock);
    work = new_work;
    context = new_context;
    run_threads = threads;
    working.store((int)members.size(), std::memory_order_relaxed);
    {
        std::lock_guard<std::mutex> guard(sleep_lock);
        run_number.fetch_add(1);
    }
    if (sleeping.load() > 0) wake.notify_all();
    new_work(new_context, 0, threads);
    for (int spins = 0; working.load(std::memory_order_acquire) > 0; spins++)
        spins < SPINS_BEFORE_YIELD ? pause() : std::this_thread::yield();
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> guard(sleep_lock);
        stop = true;
        run_number.fetch_add(1);
    }
    wake.notify_all();
    for (std::thread &member : members) member.join();
}

} // namespace fggp
#endif
