/* PyTorch's own threads, where it has them from GNU's or Intel's OpenMP.
 *
 * Two teams of threads that each wait awake for their next work would take the cores from each other wherever kernels
 * and PyTorch alternate. So the OpenMP that PyTorch has loaded is looked up by name; nothing is linked. */
#ifndef FGGP_OPENMP_H
#define FGGP_OPENMP_H

#include "threads/threads.h"

namespace fggp {
/* Call work on up to so many of PyTorch's threads. Returns false, with nothing done, where there are none to be had. */
bool run_on_openmp(Work work, void *context, int threads);
} // namespace fggp
#endif
