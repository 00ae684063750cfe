/* PyTorch's own threads, if they are those of GNU's or Intel's OpenMP.
 *
 * Where kernels and PyTorch alternate, two teams of threads that spin while they wait would take the cores from each
 * other. So the functions of the OpenMP that PyTorch has loaded are looked up by name; nothing is linked. */
#ifndef FGGP_OPENMP_H
#define FGGP_OPENMP_H

#include "threads/threads.h"

namespace fggp {
/* Call work on up to `threads` of PyTorch's threads. Returns false, without calling it, if they cannot be used. */
bool run_on_openmp(Work work, void *context, int threads);
} // namespace fggp
#endif
