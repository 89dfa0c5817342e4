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

// Several vectors take each step side by side: with one, every step would wait for the one before.
// W is their number; their order changes no bit.
#define EACH _Pragma("GCC unroll 16") for (int i = 0; i < W; i++)

// 2^(whole + f), relative error 1.5e-7, where `shifted` is MAGIC + whole: adding MAGIC leaves the
// nearest multiple of 2 HALF_STEP in a float's last bits.
#ifdef LOOK_UP  // of a float among 16 in a register: a shorter polynomial is enough
#define MAGIC 786432.0f  // 1.5 * 2^19
#define HALF_STEP 0.03125f
// 2^(i / 16), less what i adds to the exponent when it is shifted there.
static const int32_t POWERS[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
template <int W>
INLINE void exp2_from(const Vec (&shifted)[W], const Vec (&f)[W], Vec (&to)[W]) {
  const Vec powers = load((const float *)POWERS);
  Vec power[W], p[W];
  EACH power[i] = (Vec)LOOK_UP((__m512i)shifted[i], powers);  // by the last four bits
  EACH power[i] = (Vec)((IntVec)power[i] + ((IntVec)shifted[i] << 19));
  // Taylor's coefficients: near zero the error must vanish faster than f, or long memories suffer.
  EACH p[i] = f[i] * all(0.05550410866f) + all(0.2402265070f);
  EACH p[i] = (p[i] * f[i] + all(0.6931471806f)) * f[i];
  EACH to[i] = power[i] + power[i] * p[i];
}
#else
#define MAGIC 12582912.0f  // 1.5 * 2^23
#define HALF_STEP 0.5f
template <int W>
INLINE void exp2_from(const Vec (&shifted)[W], const Vec (&f)[W], Vec (&to)[W]) {
  Vec p[W];
  // Minimax polynomial of degree 5 in relative error, 1 at zero.
  EACH p[i] = all(0.001326472731307149f) * f[i] + all(0.009671512991189957f);
  EACH p[i] = p[i] * f[i] + all(0.05550733581185341f);
  EACH p[i] = p[i] * f[i] + all(0.24022242426872253f);
  EACH p[i] = p[i] * f[i] + all(0.6931470036506653f);
  EACH p[i] = p[i] * f[i] + all(1.0f);
  EACH to[i] = (Vec)((IntVec)p[i] + ((IntVec)shifted[i] << 23));
}
#endif

// 2^x; below 2^-126 it stays there. x must not pass 127.
template <int W>
INLINE void exp2_of(Vec (&x)[W]) {
  Vec shifted[W];
  EACH x[i] = at_least(x[i], all(-126.0f));
  EACH shifted[i] = x[i] + all(MAGIC);
  EACH x[i] -= shifted[i] - all(MAGIC);
  exp2_from(shifted, x, x);
}

// 2^(a x), a x at most 127; without BOUND at least LOWEST_POWER too, with it the result stays there.
#define LOWEST_POWER -125.0f
template <bool BOUND>
INLINE Vec exp2_of_product(Vec a, Vec x) {
  Vec shifted[1] = {a * x + all(MAGIC)};
  if (BOUND) shifted[0] = at_least(shifted[0], all(MAGIC + LOWEST_POWER));
  Vec f[1] = {a * x - (shifted[0] - all(MAGIC))};
  if (BOUND) f[0] = at_least(f[0], all(-HALF_STEP));
  exp2_from(shifted, f, f);
  return f[0];
}

#define LOG2_E 1.44269504088896f

// log(1 + exp(x)) and, with SLOPE, its derivative, the logistic function.
template <bool SLOPE, int W>
INLINE void softplus(Vec (&x)[W], Vec (&slope)[W]) {
  Vec e[W], s[W], q[W], p[W];
  EACH e[i] = magnitude(x[i]) * all(-LOG2_E);
  exp2_of(e);
  // log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3; minimax in s^2.
  EACH s[i] = e[i] / (all(2.0f) + e[i]);
  EACH q[i] = s[i] * s[i];
  EACH p[i] = all(0.280119925737381f) * q[i] + all(0.28001803159713745f);
  EACH p[i] = p[i] * q[i] + all(0.4002152681350708f);
  EACH p[i] = p[i] * q[i] + all(0.666664183139801f);
  EACH p[i] = p[i] * q[i] + all(2.0f);
  if (SLOPE) {
    EACH q[i] = all(1.0f) / (all(1.0f) + e[i]);
    EACH slope[i] = x[i] < all(0.0f) ? e[i] * q[i] : q[i];
  }
  EACH x[i] = at_least(x[i], all(0.0f)) + p[i] * s[i];
}

// 1 + exp(-x), from which the logistic function and SiLU follow.
template <int W>
INLINE void one_and_exp_minus(const Vec (&x)[W], Vec (&to)[W]) {
  EACH to[i] = at_most(x[i] * all(-LOG2_E), all(126.0f));
  exp2_of(to);
  EACH to[i] += all(1.0f);
}

// x / (1 + exp(-x)); far below zero it is nothing, however far.
template <int W>
INLINE void silu(Vec (&x)[W]) {
  Vec below[W];
  one_and_exp_minus(x, below);
  EACH x[i] = at_least(x[i], all(-1e4f)) / below[i];
}
INLINE Vec logistic(Vec x) {
  Vec one[1] = {x}, below[1];
  one_and_exp_minus(one, below);
  return all(1.0f) / below[0];
}
#undef EACH

INLINE float sum_of(Vec value) {
  float lanes[LANES];
  store(lanes, value);
  // As a tree: sums of halves do not wait for one another.
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

#if defined(__GNUC__) && !defined(__clang__)
// Each lane plus the one WIDTH away, of two vectors: a's where a lane's number lacks WIDTH, else b's.
template <int WIDTH>
INLINE Vec merge(Vec a, Vec b) {
  IntVec here, there;
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) {
    here[i] = i & WIDTH ? LANES + (i ^ WIDTH) : i;
    there[i] = i & WIDTH ? LANES + i : i ^ WIDTH;
  }
  return __builtin_shuffle(a, b, here) + __builtin_shuffle(a, b, there);
}
template <int WIDTH>
INLINE void merge_all(Vec (&v)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH; i++) v[i] = merge<WIDTH>(v[i], v[i + WIDTH]);
}

// `sum_of` LANES vectors at once, to the same bits.
INLINE Vec sums_of(const float *from) {
  Vec v[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) v[i] = load(from + i * LANES);
#if LANES == 16
  merge_all<8>(v);
#endif
#if LANES >= 8
  merge_all<4>(v);
#endif
  merge_all<2>(v);
  merge_all<1>(v);
  return v[0];
}
#else
INLINE Vec sums_of(const float *from) {
  Vec sums;
  for (int i = 0; i < LANES; i++) sums[i] = sum_of(load(from + i * LANES));
  return sums;
}
#endif
