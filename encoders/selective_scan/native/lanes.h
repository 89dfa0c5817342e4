// Vectors of LANES floats and the few functions the kernels need, for one instruction set.
//
// Included once per instruction set inside a namespace of its own, with LANES (floats a vector)
// and TARGET (the attribute that switches the instructions on) defined. Only the compiler's vector
// extensions are used, so that the same text compiles for x86-64 and Arm.

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
// What memory holds: aligned to a float only.
typedef float VecInMemory __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE Vec load(const float *from) { return *(const VecInMemory *)from; }
INLINE void store(float *to, Vec value) { *(VecInMemory *)to = value; }
INLINE Vec all(float value) { return value - (Vec){}; }

// The first `count` floats, zeros after them.
INLINE Vec load_some(const float *from, int64_t count) {
  if (count >= LANES) return load(from);
  float whole[LANES] = {0};
  for (int64_t i = 0; i < count; i++) whole[i] = from[i];
  return load(whole);
}
INLINE void store_some(float *to, Vec value, int64_t count) {
  if (count >= LANES) {
    store(to, value);
    return;
  }
  float whole[LANES];
  store(whole, value);
  for (int64_t i = 0; i < count; i++) to[i] = whole[i];
}

// The instructions return their second operand where one is NaN: a NaN in `value` stays.
#ifdef MAXIMUM
INLINE Vec at_least(Vec value, Vec bound) { return (Vec)MAXIMUM(bound, value); }
INLINE Vec at_most(Vec value, Vec bound) { return (Vec)MINIMUM(bound, value); }
#else
INLINE Vec at_least(Vec value, Vec bound) { return value < bound ? bound : value; }
INLINE Vec at_most(Vec value, Vec bound) { return value > bound ? bound : value; }
#endif
INLINE Vec magnitude(Vec value) { return (Vec)((IntVec)value & 0x7fffffff); }

// 2^x, relative error 1.5e-7; below 2^-126 it stays there. x must not pass 127.
INLINE Vec exp2_of(Vec x) {
  x = at_least(x, all(-126.0f));
  // Adding 1.5 * 2^23 leaves the nearest whole number in the last bits.
  const Vec magic = all(12582912.0f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  // Minimax polynomial of degree 5 for 2^f on [-1/2, 1/2] in relative error, 1 at zero.
  Vec p = all(0.001326472731307149f) * f + all(0.009671512991189957f);
  p = p * f + all(0.05550733581185341f);
  p = p * f + all(0.24022242426872253f);
  p = p * f + all(0.6931470036506653f);
  p = p * f + all(1.0f);
  return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

#define LOG2_E 1.44269504088896f

// log(1 + exp(x)) and its derivative, the logistic function.
struct Softplus {
  Vec value, slope;
};
INLINE Softplus softplus(Vec x) {
  const Vec e = exp2_of(magnitude(x) * all(-LOG2_E));
  // log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3; minimax in s^2.
  const Vec s = e / (all(2.0f) + e);
  const Vec q = s * s;
  Vec p = all(0.280119925737381f) * q + all(0.28001803159713745f);
  p = p * q + all(0.4002152681350708f);
  p = p * q + all(0.666664183139801f);
  p = p * q + all(2.0f);
  const Vec larger = all(1.0f) / (all(1.0f) + e);
  return {at_least(x, all(0.0f)) + p * s, x < all(0.0f) ? e * larger : larger};
}

// x / (1 + exp(-x)), and its derivative through the logistic function.
INLINE Vec logistic(Vec x) {
  return all(1.0f) / (all(1.0f) + exp2_of(at_most(x * all(-LOG2_E), all(126.0f))));
}
INLINE Vec silu(Vec x) { return x / (all(1.0f) + exp2_of(at_most(x * all(-LOG2_E), all(126.0f)))); }

INLINE float sum_of(Vec value) {
  float lanes[LANES];
  store(lanes, value);
  // As a tree: sums of halves do not wait for one another.
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}
