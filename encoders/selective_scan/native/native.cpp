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
#include "products.h"
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
#include "products.h"
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
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAS_BFLOAT16 1
namespace bfloat16 {  // products alone
#define MAXIMUM _mm512_max_ps
#define MINIMUM _mm512_min_ps
#define LOOK_UP _mm512_permutexvar_ps
#define ADD_PAIRS(sums, a, b) \
  (Vec)_mm512_dpbf16_ps((__m512)(sums), (__m512bh)(a), (__m512bh)(b))
#define ROUND_PAIRS(low, high) (Vec)_mm512_cvtne2ps_pbh((__m512)(high), (__m512)(low))
#define LANES 16
#define TARGET                                                                        \
  __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma,"     \
                        "prefer-vector-width=512")))
#include "lanes.h"
#include "products.h"
#undef MAXIMUM
#undef MINIMUM
#undef LOOK_UP
#undef ADD_PAIRS
#undef ROUND_PAIRS
#undef LANES
#undef MAGIC
#undef HALF_STEP
#undef TARGET
#undef INLINE
}  // namespace bfloat16
#endif
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
#include "products.h"
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
// Whether it has instructions for products of bfloat16, which `multiply_bfloat16` takes.
int genebold_multiplies_bfloat16(void) {
#ifdef HAS_BFLOAT16
  return level_of_this_cpu() == AVX512 && __builtin_cpu_supports("avx512bf16");
#else
  return 0;
#endif
}
int genebold_multiply(const Product *q, int level) {
#ifdef HAS_BFLOAT16
  if (q->bfloat16) return bfloat16::multiply(*q);
#endif
  DISPATCH(multiply, q)
}
int genebold_norm(const Norm *q, int level) { DISPATCH(norm, q) }
int genebold_norm_backward(const NormBackward *q, int level) { DISPATCH(norm_backward, q) }
int genebold_gate_backward(const GateBackward *q, int level) { DISPATCH(gate_backward, q) }
int genebold_convolve(const Convolution *q, int level) { DISPATCH(convolve, q) }
int genebold_convolve_backward(const Convolution *q, int level) { DISPATCH(convolve_backward, q) }
int genebold_pack(const Packing *q, int) {
  enum { TOGETHER = 16 };
  for (int64_t first = 0; first < q->width; first += PANEL) {
    const int64_t count = q->width - first < PANEL ? q->width - first : PANEL;
    const int32_t *from = q->from + first * q->row;
    int32_t *to = q->to + first * q->depth;
    for (int64_t begin = 0; begin < q->depth; begin += TOGETHER) {
      const int64_t end = begin + TOGETHER < q->depth ? begin + TOGETHER : q->depth;
      for (int64_t i = 0; i < PANEL; i++)
        for (int64_t k = begin; k < end; k++)
          to[k * PANEL + i] = i < count ? from[i * q->row + k * q->column] : 0;
    }
  }
  return 0;
}
int genebold_visit(const Visit *v, int level) {
  const int64_t start = v->start, length = v->end - start, rows = v->norm.rows * length;
  int failed = 0;
  if (v->first || (v->last && v->gate.x)) {
    Norm q = v->norm;
    q.length = length;
    q.x.data += start * q.x.position;
    failed |= genebold_norm(&q, level);
  }
  if (v->first) {
    Product q = v->inputs;
    q.rows = rows;
    q.y += start * q.y_row;
    failed |= genebold_multiply(&q, level);
  }
  {
    Convolution q = v->convolution;
    const int64_t before = q.reverse ? q.length - v->end : start;
    q.before = before < q.taps - 1 ? before : q.taps - 1;
    q.length = length;
    q.x.data += start * q.x.position;
    failed |= genebold_convolve(&q, level);
  }
  {
    Product q = v->projection;
    q.rows = rows;
    failed |= genebold_multiply(&q, level);
  }
  if (v->last && v->gate.x) {
    Product q = v->gate;
    q.rows = rows;
    failed |= genebold_multiply(&q, level);
  }
  {
    ScanForward q = v->scan;
    q.length = length;
    q.y.data += start * q.y.position;
    q.accumulate = !v->first;
    if (!v->last) q.gate.data = nullptr;
    failed |= genebold_scan_forward(&q, level);
  }
  if (v->last) {
    Product q = v->outputs;
    q.rows = rows;
    q.x += start * q.x_row;
    q.y += start * q.y_row;
    failed |= genebold_multiply(&q, level);
  }
  return failed;
}
}
