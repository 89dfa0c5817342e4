// CPU kernels of the selective scan and of the short convolution beside it, without any library.
//
// One translation unit and no machine flags: every kernel is compiled for several instruction sets
// and one is picked at run time. No -ffast-math: it would break the rounding in exp2_of.
#include <stdint.h>
#include <stdlib.h>

#include "arguments.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define HAS_X86_LEVELS 1
namespace avx512 {
#define MAXIMUM _mm512_max_ps
#define MINIMUM _mm512_min_ps
#define LOOK_UP _mm512_permutexvar_ps
#define LANES 16
#define MOST_STATES 16
#define MOST_STATES_BACKWARD 8
#define TARGET \
  __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")))
#include "lanes.h"
#include "kernels.h"
#undef MAXIMUM
#undef MINIMUM
#undef LANES
#undef LOOK_UP
#undef MAGIC
#undef HALF_STEP
#undef MOST_STATES
#undef MOST_STATES_BACKWARD
#undef TARGET
#undef INLINE
}  // namespace avx512
namespace avx2 {
#define MAXIMUM _mm256_max_ps
#define MINIMUM _mm256_min_ps
#define LANES 8
#define MOST_STATES 8
#define MOST_STATES_BACKWARD 8
#define TARGET __attribute__((target("avx2,fma")))
#include "lanes.h"
#include "kernels.h"
#undef MAXIMUM
#undef MINIMUM
#undef LANES
#undef MAGIC
#undef HALF_STEP
#undef MOST_STATES
#undef MOST_STATES_BACKWARD
#undef TARGET
#undef INLINE
}  // namespace avx2
#endif

namespace baseline {  // SSE2 on x86-64, NEON on Arm
#ifdef HAS_X86_LEVELS
#define MAXIMUM _mm_max_ps
#define MINIMUM _mm_min_ps
#endif
#define LANES 4
#define MOST_STATES 8
#define MOST_STATES_BACKWARD 4
#define TARGET
#include "lanes.h"
#include "kernels.h"
}  // namespace baseline

enum { BASELINE = 0, AVX2 = 1, AVX512 = 2 };

static int level_of_this_cpu(void) {
#ifdef HAS_X86_LEVELS
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return AVX512;
  if (wide) return AVX2;
#endif
  return BASELINE;
}

#ifdef HAS_X86_LEVELS
#define DISPATCH(function, argument)                     \
  switch (level) {                                       \
    case AVX512: return avx512::function(*argument);     \
    case AVX2: return avx2::function(*argument);         \
    default: return baseline::function(*argument);       \
  }
#else
#define DISPATCH(function, argument) return baseline::function(*argument);
#endif

extern "C" {
int genebold_interface_version(void) { return INTERFACE_VERSION; }
// 0 baseline, 1 AVX2, 2 AVX-512: the highest this CPU has.
int genebold_level(void) { return level_of_this_cpu(); }
int genebold_scan_forward(const ScanForward *s, int level) { DISPATCH(scan_forward, s) }
int genebold_scan_backward(const ScanBackward *q, int level) { DISPATCH(scan_backward, q) }
int genebold_norm(const Norm *q, int level) { DISPATCH(norm, q) }
int genebold_norm_backward(const NormBackward *q, int level) { DISPATCH(norm_backward, q) }
int genebold_gate_backward(const GateBackward *q, int level) { DISPATCH(gate_backward, q) }
int genebold_convolve(const Convolution *q, int level) { DISPATCH(convolve, q) }
int genebold_convolve_backward(const Convolution *q, int level) { DISPATCH(convolve_backward, q) }
}
