#include "operators/loop.h"

namespace fggp {
namespace {

/* With less work, a task costs more to hand out than to run. */
constexpr int64_t LEAST_WORK = 8192;
/* Enough that threads which finish early take over the work of a slow one. */
constexpr int64_t TASKS_PER_THREAD = 4;

int64_t most_tasks(int64_t count, int64_t work_each) {
    if (count <= 0) return 0;
    int64_t each = std::max<int64_t>(1, LEAST_WORK / std::max<int64_t>(1, work_each)); /* pieces in a task */
    return std::max<int64_t>(1, count / each);
}

} // namespace

Pieces::Pieces(int64_t count, int64_t work_each, int64_t floats)
    : count(count), most(most_tasks(count, work_each)), floats(floats) {}

int Pieces::tasks(int threads) const { return (int)std::min<int64_t>(most, threads * TASKS_PER_THREAD); }
int64_t Pieces::scratch() const { return floats; }

} // namespace fggp
