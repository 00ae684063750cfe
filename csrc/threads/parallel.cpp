#include "threads/parallel.h"

#include "threads/openmp.h"

namespace fggp {

#ifdef __wasi__
void run_on_threads(Work work, void *context, int) { work(context, 0, 1); }
#else
void run_on_threads(Work work, void *context, int threads) {
    if (threads > 1 && run_on_openmp(work, context, threads)) return;
    Team &team = Team::instance();
    team.run(work, context, team.start_threads(threads));
}
#endif

} // namespace fggp
