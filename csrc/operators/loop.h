/* An operation that does independent pieces of work in any order, on several threads if there is enough of it. */
#ifndef FGGP_OPERATORS_LOOP_H
#define FGGP_OPERATORS_LOOP_H

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/operation.h"

namespace fggp {

/* With less work, a task costs more to hand out than to run. */
constexpr int64_t LEAST_WORK = 8192;

template <class Work> class Loop final : public Operation {
  public:
    Loop(int64_t count, int64_t work_each, int64_t floats, const Work &work)
        : count(count), most(most_tasks(count, work_each)), floats(floats), work(work) {}

    int tasks(int threads) const override { return (int)std::min<int64_t>(most, (int64_t)threads * 4); }
    int64_t scratch() const override { return floats; }
    void run(int task, int tasks, const Call &call, float *scratch) const override {
        Range range(count, task, tasks);
        if (range.begin < range.end) work(range, call, scratch);
    }

  private:
    static int64_t most_tasks(int64_t count, int64_t work_each) {
        if (count <= 0) return 0;
        int64_t each = std::max<int64_t>(1, LEAST_WORK / std::max<int64_t>(1, work_each)); /* pieces in a task */
        return std::max<int64_t>(1, count / each);
    }

    int64_t count, most, floats;
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
