#include "threads/threads.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fggp {
namespace {

/* Looks before a waiting thread offers its core to others, and how long it waits awake for the next run. */
constexpr int LOOKS = 2000;
constexpr std::chrono::microseconds AWAKE(500);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

Team *team = nullptr;
std::mutex making;

#if defined(__unix__) || defined(__APPLE__)
/* In a forked child there are no threads of the team's, and whatever held the lock is not there to let go of it. */
void begin_child() {
    new (&making) std::mutex;
    team = nullptr;
}
const int at_fork = pthread_atfork(nullptr, nullptr, begin_child);
#endif

} // namespace

void Barrier::wait(int threads) {
    int now = round.load(std::memory_order_relaxed);
    if (here.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
        here.store(0, std::memory_order_relaxed);
        round.store(now + 1, std::memory_order_release);
        return;
    }
    for (int look = 0; round.load(std::memory_order_acquire) == now; look++)
        look < LOOKS ? pause() : std::this_thread::yield();
}

Team &Team::instance() {
    std::lock_guard<std::mutex> lock(making);
    if (!team) team = new Team; /* never deleted: its threads may outlive static objects at exit */
    return *team;
}

int Team::ready(int threads) {
    if (threads <= 1) return 1;
    std::lock_guard<std::mutex> lock(one_run);
    try {
        while ((int)members.size() < threads - 1) {
            int thread = (int)members.size() + 1;
            members.emplace_back(&Team::attend, this, thread, call.load());
        }
    } catch (const std::system_error &) {
    }
    return std::min(threads, (int)members.size() + 1);
}

void Team::attend(int thread, int seen) {
    for (;;) {
        auto until = std::chrono::steady_clock::now() + AWAKE;
        for (int look = 0; call.load(std::memory_order_acquire) == seen; look++) {
            if (look < LOOKS) {
                pause();
                continue;
            }
            if (std::chrono::steady_clock::now() < until) {
                std::this_thread::yield();
                continue;
            }
            std::unique_lock<std::mutex> lock(sleep);
            sleeping.fetch_add(1);
            wake.wait(lock, [&] { return call.load() != seen; });
            sleeping.fetch_sub(1);
        }
        seen = call.load(std::memory_order_acquire);
        if (stop) return;
        if (thread < wanted) work(context, thread, wanted);
        working.fetch_sub(1, std::memory_order_acq_rel);
    }
}

void Team::run(Work new_work, void *new_context, int threads) {
    if (threads <= 1) {
        new_work(new_context, 0, 1);
        return;
    }
    std::lock_guard<std::mutex> lock(one_run);
    work = new_work;
    context = new_context;
    wanted = threads;
    working.store((int)members.size(), std::memory_order_relaxed);
    {
        std::lock_guard<std::mutex> guard(sleep);
        call.fetch_add(1);
    }
    if (sleeping.load() > 0) wake.notify_all();
    new_work(new_context, 0, threads);
    for (int look = 0; working.load(std::memory_order_acquire) > 0; look++)
        look < LOOKS ? pause() : std::this_thread::yield();
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> guard(sleep);
        stop = true;
        call.fetch_add(1);
    }
    wake.notify_all();
    for (std::thread &member : members) member.join();
}

} // namespace fggp
