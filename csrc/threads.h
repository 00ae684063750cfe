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
    explicit Barrier(int threads) : threads(threads) {}
    void wait();

  private:
    const int threads;
    std::atomic<int> here{0};
    std::atomic<int> round{0};
};

class Team {
  public:
    typedef void (*Work)(void *context, int thread);

    ~Team();
    /* Call work(context, i) for i from 0 to threads - 1, at once; the caller's thread does 0. */
    void run(Work work, void *context, int threads);

    /* The process's one team. Made anew in a forked child, where no thread is left. */
    static Team &instance();

  private:
    void grow(int threads);
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
