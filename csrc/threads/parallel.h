/* What every function of the C interface that works needs: threads to do it on, and that nothing is thrown at C. */
#ifndef FGGP_PARALLEL_H
#define FGGP_PARALLEL_H

#include <new>

#include "threads/threads.h"

namespace fggp {

/* Call work(context, thread, of) on up to `threads` threads at once, the caller's being one of them: on PyTorch's own
 * where they are to be had, otherwise on the team's. */
void run_on_threads(Work work, void *context, int threads);

/* Returns 0, or 1 where memory ran out. */
template <class Do> int without_throwing(const Do &action) {
    try {
        action();
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

} // namespace fggp
#endif
