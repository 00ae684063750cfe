/* The operations of a program. Each is divided into tasks, which any thread may run in any order. */
#ifndef FGGP_OPERATION_H
#define FGGP_OPERATION_H

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fggp {

/* A run that failed because of the numbers in its inputs; the message says which. */
struct Failed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/* Whether a run failed. Operations report what they find wrong and go on without it; only the first report counts. */
class Failure {
  public:
    /* The message is `why` and the number. The text must outlive the run. */
    void report(const std::string &why, int64_t number) {
        if (reported.exchange(true)) return;
        message = &why;
        found = number;
    }
    /* After the run, on the thread that waited for all others: throws Failed if there was a report. */
    void check() const {
        if (reported) throw Failed(*message + std::to_string(found));
    }

  private:
    std::atomic<bool> reported{false};
    const std::string *message = nullptr;
    int64_t found = 0;
};

/* The arguments of one run of a program. */
struct Call {
    void *const *slots; /* addresses of inputs and outputs */
    int32_t images;
    Failure *failure = nullptr; /* set by Program::run() */
};

struct Operation {
    virtual ~Operation() = default;
    /* The number of tasks for this number of threads. */
    virtual int tasks(int threads) const = 0;
    /* Run one of the `tasks`. */
    virtual void run(int task, int tasks, const Call &call, float *scratch) const = 0;
    /* Floats of scratch memory that a thread needs. */
    virtual int64_t scratch() const { return 0; }
};

/* The part of 0 … count - 1 that a task processes. The sizes of the parts differ by at most one. */
struct Range {
    int64_t begin, end;
    Range(int64_t count, int64_t task, int64_t tasks) : begin(count * task / tasks), end(count * (task + 1) / tasks) {}
};

} // namespace fggp
#endif
