/* An operation that does independent pieces of work in any order, on several threads if there is enough of it. */
#ifndef FGGP_OPERATORS_LOOP_H
#define FGGP_OPERATORS_LOOP_H

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/operation.h"

namespace fggp {

/* What does not depend on the work, and so is compiled once (loop.cpp). */
class Pieces : public Operation {
  public:
    Pieces(int64_t count, int64_t work_each, int64_t floats);
    int tasks(int threads) const override;
    int64_t scratch() const override;

  protected:
    int64_t count;

  private:
    int64_t most, floats;
};

template <class Work> class Loop final : public Pieces {
  public:
    Loop(int64_t count, int64_t work_each, int64_t floats, const Work &work)
        : Pieces(count, work_each, floats), work(work) {}

    void run(int task, int tasks, const Call &call, float *scratch) const override {
        Range range(count, task, tasks);
        if (range.begin < range.end) work(range, call, scratch);
    }

  private:
    Work work;
};

/* A loop over `count` pieces, each of the work of reading and writing `work_each` floats or so. It calls work(Range,
 * const Call &, float *scratch), with `floats` floats of scratch memory. */
template <class Work>
std::unique_ptr<Operation> loop(int64_t count, int64_t work_each, int64_t floats, const Work &work) {
    return std::make_unique<Loop<Work>>(count, work_each, floats, work);
}
template <class Work> std::unique_ptr<Operation> loop(int64_t count, int64_t work_each, const Work &work) {
    return loop(count, work_each, 0, work);
}

} // namespace fggp
#endif
