/* Numbers below 1.2e-38, for which processors need a hundred times as long. */
#ifndef FGGP_DENORMALS_H
#define FGGP_DENORMALS_H

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace fggp {

/* While this lives, its thread computes with zeros in place of denormal numbers. The softmax of scores with a mask of
 * -100, as shifted windows have it, is full of them. */
class DenormalsAreZero {
  public:
    DenormalsAreZero(const DenormalsAreZero &) = delete;
    DenormalsAreZero &operator=(const DenormalsAreZero &) = delete;

#if defined(__SSE__)
    DenormalsAreZero() : before(_mm_getcsr()) { _mm_setcsr(before | FLUSH_RESULTS | TAKE_INPUTS_FOR_ZERO); }
    ~DenormalsAreZero() { _mm_setcsr(before); }

  private:
    static constexpr unsigned FLUSH_RESULTS = 0x8000, TAKE_INPUTS_FOR_ZERO = 0x0040;
    unsigned before;
#elif defined(__aarch64__)
    DenormalsAreZero() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | FLUSH_BOTH));
    }
    ~DenormalsAreZero() { asm volatile("msr fpcr, %0" : : "r"(before)); }

  private:
    static constexpr uint64_t FLUSH_BOTH = 1 << 24;
    uint64_t before;
#else /* WebAssembly has no such mode */
    DenormalsAreZero() {}
#endif
};

} // namespace fggp
#endif
