/* A few threads that wait for work nearby: a run of small layers is over before a sleeping thread would be awake. */
#ifndef FGGP_THREADS_H
#define FGGP_THREADS_H

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace fggp {

/* Where threads meet; nobody passes before all have come. */
class Barrier {
  public:
    void wait(int threads);

  private:
    std::atomic<int> here{0};
    std::atomic<int> round{0};
};

/* What thread number `thread` of `threads` is to do. */
typedef void (*Work)(void *context, int thread, int threads);

class Team {
  public:

    ~Team();
    /* Start threads until there are so many, the caller's among them. Returns how many there are of these, which is
     * fewer where the system gives no more. */
    int ready(int threads);
    /* Call work(context, i, threads) for i from 0 to threads - 1, at once; the caller's thread does 0.
     * There must be as many, by ready(). */
    void run(Work work, void *context, int threads);

    /* The process's one team. Made anew in a forked child, where no thread is left. */
    static Team &instance();

  private:
    void attend(int thread, int seen);

    std::vector<std::thread> members;
    std::mutex one_run; /* one run at a time */
    std::mutex sleep;
    std::condition_variable wake;
    std::atomic<int> call{0}; /* counts runs; a change is the call to work */
    std::atomic<int> working{0};
    std::atomic<int> sleeping{0};
    bool stop = false;
    Work work = nullptr;
    void *context = nullptr;
    int wanted = 0;
};

} // namespace fggp
#endif
