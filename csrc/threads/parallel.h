/* For the functions of the C interface: running work on threads, and turning exceptions into a status. */
#ifndef FGGP_PARALLEL_H
#define FGGP_PARALLEL_H

#include <new>

#include "threads/threads.h"

namespace fggp {

/* Call work(context, thread, threads) on up to `threads` threads at the same time, the caller's included: on PyTorch's
 * own threads if they can be used, otherwise on the team's. */
void run_on_threads(Work work, void *context, int threads);

/* Run the action. Returns 0, or 1 if memory ran out. */
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
