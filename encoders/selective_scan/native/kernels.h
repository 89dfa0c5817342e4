// The kernels, for one instruction set: included after lanes.h in the same namespace.
//
// Channels lie in the lanes of a vector and states in registers, so that nothing is summed across
// lanes. Positions are taken in tiles whose buffers stay in the first-level cache.

enum { TILE = 64 };

// Rows of one tile in the order of memory, LANES channels wide.
typedef float Rows[TILE * LANES];

// Weights of LANES channels, turned so that channels are contiguous.
INLINE void turn(const float *from, int64_t width, int64_t count, float scale, float *to) {
  for (int64_t i = 0; i < width; i++) {
    for (int64_t lane = 0; lane < LANES; lane++) {
      to[i * LANES + lane] = lane < count ? from[lane * width + i] * scale : 0.0f;
    }
  }
}

INLINE const float *at(const Sequence &s, int64_t row, int64_t position) {
  return s.data + row * s.row + position * s.position;
}
INLINE float *at_mutable(const Sequence &s, int64_t row, int64_t position) {
  return s.data + row * s.row + position * s.position;
}

// What one block of LANES channels carries along.
struct Channels {
  int64_t first, count;
  Vec bias, skip;
  const float *weight;  // [rank, LANES]
  const float *a;       // [states, LANES], times log2(e)
};

// COUNT positions of softplus' argument, which share the loads of the weights.
template <int COUNT>
TARGET static void project(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                           float *to) {
  const float *low[COUNT];
  Vec sum[COUNT];
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; i++) {
    low[i] = at(s.low, row, start + i);
    sum[i] = c.bias;
  }
  for (int64_t r = 0; r < s.rank; r++) {
    const Vec weight = load(c.weight + r * LANES);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i++) sum[i] += weight * low[i][r];
  }
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; i++) {
    if (s.rank == 0) sum[i] += load_some(low[i] + c.first, c.count);
    store(to + i * LANES, sum[i]);
  }
}

// `time_steps` for COUNT positions from `t` on, after the projection.
template <bool SLOPE, int COUNT>
INLINE void apply_softplus(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                           int64_t t, float *delta, float *input, float *slope) {
  Vec step[COUNT], rising[COUNT];
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; i++) {
    step[i] = load(delta + (t + i) * LANES);
    rising[i] = all(1.0f);
  }
  if (s.activate) softplus<SLOPE>(step, rising);
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; i++) {
    if (SLOPE) store(slope + (t + i) * LANES, rising[i]);
    store(delta + (t + i) * LANES, step[i]);
    const Vec u = load_some(at(s.u, row, start + t + i) + c.first, c.count);
    store(input + (t + i) * LANES, step[i] * u);
  }
}

// delta, delta * u and, with SLOPE, the slope of softplus, for a tile.
template <bool SLOPE>
TARGET static void time_steps(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                              int64_t length, float *delta, float *input, float *slope) {
  int64_t t = 0;
  for (; t + 4 <= length; t += 4) project<4>(s, c, row, start + t, delta + t * LANES);
  for (; t < length; t++) project<1>(s, c, row, start + t, delta + t * LANES);
  for (t = 0; t + 4 <= length; t += 4)
    apply_softplus<SLOPE, 4>(s, c, row, start, t, delta, input, slope);
  for (; t < length; t++) apply_softplus<SLOPE, 1>(s, c, row, start, t, delta, input, slope);
}

// STATES states of a tile, beginning at `first`: updates `state` [STATES, LANES], adds to `out`.
template <bool BOUND, int STATES>
TARGET static void advance(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                           int64_t length, int64_t first, const float *delta, const float *input,
                           float *state, float *out) {
  Vec h[STATES];
  const float *a = c.a + first * LANES;
#pragma GCC unroll 16
  for (int n = 0; n < STATES; n++) h[n] = load(state + n * LANES);
  for (int64_t j = 0; j < length; j++) {
    const int64_t t = s.reverse ? length - 1 - j : j;
    const float *b = at(s.b, row, start + t) + first;
    const float *g = at(s.c, row, start + t) + first;
    const Vec step = load(delta + t * LANES), x = load(input + t * LANES);
    Vec even = load(out + t * LANES), odd = {};
#pragma GCC unroll 16
    for (int n = 0; n < STATES; n++) {
      h[n] = exp2_of_product<BOUND>(step, load(a + n * LANES)) * h[n] + x * b[n];
      if (n % 2)
        odd += h[n] * g[n];
      else
        even += h[n] * g[n];
    }
    store(out + t * LANES, even + odd);
  }
#pragma GCC unroll 16
  for (int n = 0; n < STATES; n++) store(state + n * LANES, h[n]);
}

// Whether some state of a tile may decay by more than 2^LOWEST_POWER in one position.
TARGET static bool decays_fast(const ScanForward &s, const Channels &c, int64_t length,
                               const float *delta) {
  // Steps below zero, or states that grow, are not looked at any closer.
  Vec longest = {}, shortest = {}, lowest = {}, highest = {};
  for (int64_t t = 0; t < length; t++) {
    longest = at_least(load(delta + t * LANES), longest);
    shortest = at_most(load(delta + t * LANES), shortest);
  }
  for (int64_t n = 0; n < s.states; n++) {
    lowest = at_most(load(c.a + n * LANES), lowest);
    highest = at_least(load(c.a + n * LANES), highest);
  }
  float power[LANES], odd[LANES];
  store(power, longest * lowest);
  store(odd, highest - shortest);
  bool slow = true;
  for (int lane = 0; lane < LANES; lane++)
    slow = slow && power[lane] >= LOWEST_POWER && odd[lane] == 0.0f;
  return !slow;
}

template <bool BOUND>
TARGET static void advance_all(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                               int64_t length, const float *delta, const float *input, float *state,
                               float *out) {
  int64_t n = 0;
#define STEP(COUNT)                                                                               \
  for (; n + COUNT <= s.states; n += COUNT)                                                       \
    advance<BOUND, COUNT>(s, c, row, start, length, n, delta, input, state + n * LANES, out);
  STEP(MOST_STATES)
  STEP(4)
  STEP(1)
#undef STEP
}

// States of a block of channels to and from arrays [state, channel].
INLINE void put_states(float *to, const ScanForward &s, const Channels &c, const float *from) {
  for (int64_t n = 0; n < s.states; n++)
    store_some(to + n * s.channels + c.first, load(from + n * LANES), c.count);
}

// Channels whose weights are turned already.
INLINE Channels channels_at(const ScanForward &s, int64_t first, const float *weight,
                            const float *a) {
  const int64_t left = s.channel_end - first;
  Channels c = {first, left < LANES ? left : LANES, {}, {}, weight, a};
  if (s.bias) c.bias = load_some(s.bias + first, c.count);
  if (s.skip) c.skip = load_some(s.skip + first, c.count);
  return c;
}

TARGET static void turn_weights(const ScanForward &s, int64_t first, float *weight, float *a) {
  const int64_t left = s.channel_end - first, count = left < LANES ? left : LANES;
  turn(s.weight + first * s.rank, s.rank, count, 1.0f, weight);
  turn(s.a + first * s.states, s.states, count, LOG2_E, a);
}

template <int COUNT>
INLINE void finish(const ScanForward &s, const Channels &c, int64_t row, int64_t position,
                   const float *out) {
  Vec gate[COUNT];
  if (s.gate.data) {
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i++)
      gate[i] = load_some(at(s.gate, row, position + i) + c.first, c.count);
    silu(gate);
  }
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; i++) {
    float *y = at_mutable(s.y, row, position + i) + c.first;
    Vec value = load(out + i * LANES);
    if (s.accumulate) value += load_some(y, c.count);
    if (s.gate.data) value *= gate[i];
    store_some(y, value, c.count);
  }
}

TARGET static void finish_rows(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                               int64_t length, const float *out) {
  int64_t t = 0;
  for (; t + 4 <= length; t += 4) finish<4>(s, c, row, start + t, out + t * LANES);
  for (; t < length; t++) finish<1>(s, c, row, start + t, out + t * LANES);
}

// Where a block of channels keeps what it needs: its state, and its weights turned.
struct Work {
  float *first;
  int64_t floats;  // of one block
  float *state(int64_t block) const { return first + block * floats; }
};

INLINE int64_t block_floats(const ScanForward &s) { return (2 * s.states + s.rank) * LANES; }
INLINE int64_t blocks_of(int64_t begin, int64_t end) { return (end - begin + LANES - 1) / LANES; }

TARGET static Channels block_channels(const ScanForward &s, const Work &work, int64_t block) {
  const float *a = work.state(block) + s.states * LANES;
  return channels_at(s, s.channel_begin + block * LANES, a + s.states * LANES, a);
}

TARGET static void scan_tile(const ScanForward &s, const Channels &c, int64_t row, int64_t start,
                             int64_t length, float *state) {
  alignas(64) Rows delta, input, out;
  time_steps<false>(s, c, row, start, length, delta, input, nullptr);
  for (int64_t t = 0; t < length; t++) {
    Vec skipped = {};
    if (s.skip) skipped = c.skip * load_some(at(s.u, row, start + t) + c.first, c.count);
    store(out + t * LANES, skipped);
  }
  if (decays_fast(s, c, length, delta))
    advance_all<true>(s, c, row, start, length, delta, input, state, out);
  else
    advance_all<false>(s, c, row, start, length, delta, input, state, out);
  finish_rows(s, c, row, start, length, out);
}

TARGET static void scan_row(const ScanForward &s, int64_t row, const Work &work) {
  const int64_t blocks = blocks_of(s.channel_begin, s.channel_end);
  // Tiles hold a whole number of kept states, counted in the order of reading. All channels of a
  // tile come before the next tile: what memory brings in is whole rows, used at once.
  const int64_t size = s.kept.data ? KEPT_EVERY : TILE;
  const int64_t tiles = (s.length + size - 1) / size;
  for (int64_t k = 0; k < tiles; k++) {
    const int64_t left = s.length - k * size, length = left < size ? left : size;
    const int64_t start = s.reverse ? left - length : k * size;
    for (int64_t block = 0; block < blocks; block++) {
      const Channels c = block_channels(s, work, block);
      if (s.kept.data) put_states(at_mutable(s.kept, row, k), s, c, work.state(block));
      scan_tile(s, c, row, start, length, work.state(block));
    }
  }
}

TARGET static int scan_forward(const ScanForward &s) {
  const int64_t blocks = blocks_of(s.channel_begin, s.channel_end);
  Work work = {nullptr, block_floats(s)};
  work.first = (float *)aligned_alloc(64, (blocks * work.floats * sizeof(float) / 64 + 1) * 64);
  if (!work.first) return 1;
  for (int64_t block = 0; block < blocks; block++) {
    float *a = work.state(block) + s.states * LANES;
    turn_weights(s, s.channel_begin + block * LANES, a + s.states * LANES, a);
  }
  for (int64_t row = s.row_begin; row < s.row_end; row++) {
    float *carried = s.state ? s.state + row * s.states * s.channels : nullptr;
    for (int64_t block = 0; block < blocks; block++) {
      const Channels c = block_channels(s, work, block);
      for (int64_t n = 0; n < s.states; n++) {
        Vec h = {};
        if (carried) h = load_some(carried + n * s.channels + c.first, c.count);
        store(work.state(block) + n * LANES, h);
      }
    }
    scan_row(s, row, work);
    for (int64_t block = 0; carried && block < blocks; block++)
      put_states(carried, s, block_channels(s, work, block), work.state(block));
  }
  free(work.first);
  return 0;
}

// ---- backward

// Sums over the tile and channel block for B and C: [KEPT_EVERY, 2, states, LANES].
struct Backward {
  const ScanBackward &q;
  const ScanForward &s;
  float *decay, *survived;  // [KEPT_EVERY, STATES, LANES], survived: decay times the state before
  float *b_c;               // [KEPT_EVERY, 2 states, LANES]
  float *delta, *input, *slope, *grad_input, *grad_step;  // rows
};

// STATES states of one tile, backwards. `carry` is dL/dh after the tile, then before it.
template <bool BOUND, int STATES>
TARGET static void retreat(const Backward &w, const Channels &c, int64_t row, int64_t start,
                           int64_t length, int64_t first, const float *kept, float *carry,
                           float *grad_a) {
  const ScanForward &s = w.s;
  const float *a = c.a + first * LANES;
  // Copies: the compiler must think that any store changes what a reference leads to.
  const float *const delta = w.delta, *const input = w.input;
  float *const decays = w.decay, *const survived = w.survived;
  const int64_t reverse = s.reverse, states = s.states;
  const Sequence in_b = s.b, in_c = s.c, grad_y = w.q.grad_y;
  const int64_t channel = c.first, count = c.count;
  Vec h[STATES];
#pragma GCC unroll 16
  for (int n = 0; n < STATES; n++)
    h[n] = load_some(kept + (first + n) * s.channels + channel, count);
  for (int64_t j = 0; j < length; j++) {
    const int64_t t = reverse ? length - 1 - j : j;
    const float *b = at(in_b, row, start + t) + first;
    const Vec step = load(delta + t * LANES), x = load(input + t * LANES);
    const Vec dy = load_some(at(grad_y, row, start + t) + channel, count);
    float *for_c = w.b_c + ((2 * t + 1) * states + first) * LANES;
#pragma GCC unroll 16
    for (int n = 0; n < STATES; n++) {
      const Vec decay = exp2_of_product<BOUND>(step, load(a + n * LANES));
      const Vec left = decay * h[n];
      store(decays + (j * STATES + n) * LANES, decay);
      store(survived + (j * STATES + n) * LANES, left);
      h[n] = left + x * b[n];
      store(for_c + n * LANES, load(for_c + n * LANES) + dy * h[n]);
    }
  }
  Vec grad[STATES], sum_a[STATES];
#pragma GCC unroll 16
  for (int n = 0; n < STATES; n++) {
    grad[n] = load(carry + n * LANES);
    sum_a[n] = (Vec){};  // a tile's own sum first: fewer roundings over a long sequence
  }
  for (int64_t j = length - 1; j >= 0; j--) {
    const int64_t t = reverse ? length - 1 - j : j;
    const float *b = at(in_b, row, start + t) + first, *g = at(in_c, row, start + t) + first;
    const Vec step = load(delta + t * LANES), x = load(input + t * LANES);
    const Vec dy = load_some(at(grad_y, row, start + t) + channel, count);
    float *for_b = w.b_c + (2 * t * states + first) * LANES;
    Vec through_input = load(w.grad_input + t * LANES), through_step = load(w.grad_step + t * LANES);
#pragma GCC unroll 16
    for (int n = 0; n < STATES; n++) {
      // After this position h = decay * before + x * b.
      grad[n] += dy * g[n];
      store(for_b + n * LANES, load(for_b + n * LANES) + grad[n] * x);
      through_input += grad[n] * b[n];
      const Vec exponent = grad[n] * load(survived + (j * STATES + n) * LANES);
      through_step += exponent * load(a + n * LANES);
      sum_a[n] += exponent * step;
      grad[n] *= load(decays + (j * STATES + n) * LANES);
    }
    store(w.grad_input + t * LANES, through_input);
    store(w.grad_step + t * LANES, through_step);
  }
#pragma GCC unroll 16
  for (int n = 0; n < STATES; n++) {
    store(carry + n * LANES, grad[n]);
    store(grad_a + n * LANES, load(grad_a + n * LANES) + sum_a[n]);
  }
}

template <bool BOUND>
TARGET static void retreat_all(const Backward &w, const Channels &c, int64_t row, int64_t start,
                               int64_t length, const float *kept, float *carry, float *grad_a) {
  int64_t n = 0;
#define STEP(COUNT)                                                                            \
  for (; n + COUNT <= w.s.states; n += COUNT)                                                  \
    retreat<BOUND, COUNT>(w, c, row, start, length, n, kept, carry + n * LANES,                \
                          grad_a + n * LANES);
  STEP(MOST_STATES_BACKWARD)
  STEP(4)
  STEP(1)
#undef STEP
}

// One tile of one block of channels: from dL/dy to dL/du, dL/dlow, and sums.
TARGET static void backward_tile(const Backward &w, const Channels &c, int64_t row, int64_t start,
                                 int64_t length, const float *kept, float *carry, float *grad_a,
                                 Vec *grad_skip) {
  const ScanForward &s = w.s;
  time_steps<true>(s, c, row, start, length, w.delta, w.input, w.slope);
  for (int64_t i = 0; i < length * LANES; i++) w.grad_input[i] = w.grad_step[i] = 0.0f;
  if (decays_fast(s, c, length, w.delta))
    retreat_all<true>(w, c, row, start, length, kept, carry, grad_a);
  else
    retreat_all<false>(w, c, row, start, length, kept, carry, grad_a);
  for (int64_t t = 0; t < length; t++) {
    const Vec u = load_some(at(s.u, row, start + t) + c.first, c.count);
    const Vec dy = load_some(at(w.q.grad_y, row, start + t) + c.first, c.count);
    const Vec through_input = load(w.grad_input + t * LANES);
    // c.a carries log2(e), which the derivative does not have.
    const Vec step = load(w.grad_step + t * LANES) * all(1.0f / LOG2_E) + through_input * u;
    store_some(at_mutable(w.q.grad_u, row, start + t) + c.first,
               through_input * load(w.delta + t * LANES) + dy * c.skip, c.count);
    store_some(at_mutable(w.q.grad_low, row, start + t) + c.first,
               step * load(w.slope + t * LANES), c.count);
    *grad_skip += dy * u;
  }
}

// Has memory bring what the backward pass reads next: channels from `first` on of tile k or, past the
// last channel, the first of the tile before. Their rows lie too far apart for a CPU to guess.
INLINE void fetch_ahead(const ScanBackward &q, int64_t row, int64_t k, int64_t first) {
  const ScanForward &s = q.forward;
  if (first == s.channel_end) {
    first = s.channel_begin;
    k -= 1;
  }
  if (k < 0) return;
  const int64_t left = s.length - k * KEPT_EVERY;
  const int64_t length = left < KEPT_EVERY ? left : KEPT_EVERY;
  const int64_t start = s.reverse ? left - length : k * KEPT_EVERY;
  for (int64_t n = 0; n < s.states; n++)
    __builtin_prefetch(at(s.kept, row, k) + n * s.channels + first);
  for (int64_t t = start; t < start + length; t++) {
    __builtin_prefetch(at(s.u, row, t) + first);
    __builtin_prefetch(at(q.grad_y, row, t) + first);
  }
}

TARGET static int scan_backward(const ScanBackward &q) {
  const ScanForward &s = q.forward;
  const int64_t blocks = (s.channel_end - s.channel_begin + LANES - 1) / LANES;
  const int64_t small = s.states * LANES, row_floats = KEPT_EVERY * LANES;
  const int64_t per_block = 3 * small + s.rank * LANES;  // carry, a, grad_a, weight
  const int64_t floats = blocks * per_block + 5 * row_floats +
                         2 * KEPT_EVERY * MOST_STATES_BACKWARD * LANES +
                         2 * KEPT_EVERY * small;
  float *work = (float *)aligned_alloc(64, (floats * sizeof(float) / 64 + 1) * 64);
  if (!work) return 1;
  float *rows = work + blocks * per_block;
  float *states = rows + 5 * row_floats;
  Backward w = {q, s, states, states + KEPT_EVERY * MOST_STATES_BACKWARD * LANES,
                states + 2 * KEPT_EVERY * MOST_STATES_BACKWARD * LANES,
                rows, rows + row_floats, rows + 2 * row_floats, rows + 3 * row_floats,
                rows + 4 * row_floats};
  const int64_t tiles = (s.length + KEPT_EVERY - 1) / KEPT_EVERY;
  for (int64_t row = s.row_begin; row < s.row_end; row++) {
    for (int64_t block = 0; block < blocks; block++) {
      float *carry = work + block * per_block, *a = carry + small, *grad_a = a + small;
      for (int64_t i = 0; i < small; i++) carry[i] = grad_a[i] = 0.0f;
      for (int64_t n = 0; q.carry && n < s.states; n++) {
        const int64_t first = s.channel_begin + block * LANES;
        store(carry + n * LANES, load_some(q.carry + (row * s.states + n) * s.channels + first,
                                           s.channel_end - first));
      }
      turn_weights(s, s.channel_begin + block * LANES, grad_a + small, a);
    }
    for (int64_t i = s.channel_begin; i < s.channel_end; i++) q.grad_skip[row * s.channels + i] = 0;
    for (int64_t k = tiles - 1; k >= 0; k--) {
      const int64_t left = s.length - k * KEPT_EVERY;
      const int64_t length = left < KEPT_EVERY ? left : KEPT_EVERY;
      const int64_t start = s.reverse ? left - length : k * KEPT_EVERY;
      for (int64_t i = 0; i < length * 2 * small; i++) w.b_c[i] = 0.0f;
      for (int64_t block = 0; block < blocks; block++) {
        float *carry = work + block * per_block, *a = carry + small, *grad_a = a + small;
        const int64_t first = s.channel_begin + block * LANES;
        const Channels c = channels_at(s, first, grad_a + small, a);
        const float *kept = at(s.kept, row, k);
        Vec skip = {};
        fetch_ahead(q, row, k, block + 1 < blocks ? first + LANES : s.channel_end);
        backward_tile(w, c, row, start, length, kept, carry, grad_a, &skip);
        float *to = q.grad_skip + row * s.channels + first;
        store_some(to, load_some(to, c.count) + skip, c.count);
      }
      float *sums = q.grad_b_c + ((s.channel_begin / q.group * q.rows + row) * s.length + start) *
                                     2 * s.states;
      int64_t i = 0, count = length * 2 * s.states;
      for (; i + LANES <= count; i += LANES) store(sums + i, sums_of(w.b_c + i * LANES));
      for (; i < count; i++) sums[i] = sum_of(load(w.b_c + i * LANES));
    }
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = s.channel_begin + block * LANES, left = s.channel_end - first;
      const Channels c = {first, left < LANES ? left : LANES, {}, {}, nullptr, nullptr};
      put_states(q.grad_a + row * s.states * s.channels, s, c, work + block * per_block + 2 * small);
      if (q.carry)
        put_states(q.carry + row * s.states * s.channels, s, c, work + block * per_block);
    }
  }
  free(work);
  return 0;
}

// ---- convolution

// Position j, counted in the order of reading from the first that this call owns.
INLINE int64_t position_of(const Convolution &q, int64_t j) {
  return q.reverse ? q.length - 1 - j : j;
}

// BLOCKS times LANES channels of one position, from `first` on.
template <int TAPS, int BLOCKS>
INLINE void convolve_channels(const Convolution &q, const float *const (&from)[TAPS],
                              const float *weight, int64_t width, int64_t first, float *to) {
  const int64_t left = q.channel_end - first;
  Vec sum[BLOCKS];
#pragma GCC unroll 4
  for (int i = 0; i < BLOCKS; i++) {
    const int64_t channel = first + i * LANES, count = left - i * LANES;
    sum[i] = (Vec){};
    if (q.bias) sum[i] = load_some(q.bias + channel, count);
#pragma GCC unroll 8
    for (int k = 0; k < TAPS; k++)
      sum[i] += load(weight + k * width + channel - q.channel_begin) *
                load_some(from[k] + channel, count);
  }
  silu(sum);
#pragma GCC unroll 4
  for (int i = 0; i < BLOCKS; i++) store_some(to + first + i * LANES, sum[i], left - i * LANES);
}

// One position, from the last TAPS read; `weight` is [TAPS, channels].
template <int TAPS>
TARGET static void convolve_position(const Convolution &q, int64_t row, int64_t j,
                                     const float *weight, int64_t width) {
  const float *from[TAPS];
#pragma GCC unroll 8
  for (int k = 0; k < TAPS; k++) from[k] = at(q.x, row, position_of(q, j + k + 1 - TAPS));
  float *to = at_mutable(q.y, row, position_of(q, j));
  int64_t first = q.channel_begin;
  for (; first + 4 * LANES <= q.channel_end; first += 4 * LANES)
    convolve_channels<TAPS, 4>(q, from, weight, width, first, to);
  for (; first < q.channel_end; first += LANES)
    convolve_channels<TAPS, 1>(q, from, weight, width, first, to);
}

// Weights [channels, taps] as [taps, width], zeros behind the last channel.
INLINE void turn_taps(const Convolution &q, int64_t width, float *to) {
  for (int64_t k = 0; k < q.taps; k++)
    for (int64_t i = 0; i < width; i++) {
      const int64_t channel = q.channel_begin + i;
      to[k * width + i] = channel < q.channel_end ? q.weight[channel * q.taps + k] : 0.0f;
    }
}

TARGET static void convolve_row(const Convolution &q, int64_t row, const float *weight,
                                int64_t width) {
  for (int64_t j = 0; j < q.length; j++) {
    // Taps before anything was read see zeros: they are left out.
    const int64_t read = j + q.before + 1, used = read < q.taps ? read : q.taps;
    const float *from = weight + (q.taps - used) * width;
    switch (used) {
      case 1: convolve_position<1>(q, row, j, from, width); break;
      case 2: convolve_position<2>(q, row, j, from, width); break;
      case 3: convolve_position<3>(q, row, j, from, width); break;
      case 4: convolve_position<4>(q, row, j, from, width); break;
      case 5: convolve_position<5>(q, row, j, from, width); break;
      case 6: convolve_position<6>(q, row, j, from, width); break;
      case 7: convolve_position<7>(q, row, j, from, width); break;
      default: convolve_position<8>(q, row, j, from, width);
    }
  }
}

TARGET static int convolve(const Convolution &q) {
  const int64_t width = (q.channel_end - q.channel_begin + LANES - 1) / LANES * LANES;
  float *weight = (float *)aligned_alloc(64, (q.taps * width * sizeof(float) / 64 + 1) * 64);
  if (!weight) return 1;
  turn_taps(q, width, weight);
  for (int64_t row = q.row_begin; row < q.row_end; row++) convolve_row(q, row, weight, width);
  free(weight);
  return 0;
}

// What the backward convolution holds of LANES channels, in vectors: weights, window, later,
// grad_weight, then what follows; see `convolve_back`.
enum { BACK_VECTORS = 5 * MAX_TAPS + 2, BACK_POSITIONS = 16 };

// Positions [begin, end) of LANES channels, from dL/dy to dL/dx, which is known TAPS - 1 positions
// later; behind the last position of the sequence what follows it is taken from `work`.
template <int TAPS>
TARGET static void convolve_back(const Convolution &q, int64_t row, int64_t first, int64_t begin,
                                 int64_t end, float *work) {
  const int64_t left = q.channel_end - first, count = left < LANES ? left : LANES;
  const bool reverse = q.reverse, adds = q.accumulate;
  const int64_t length = q.length, from = reverse ? length - 1 : 0, step = reverse ? -1 : 1;
  const Sequence x = q.x, grad_y = q.grad_y, grad_x = q.grad_x;
  float *const carry = q.carry ? q.carry + row * (TAPS - 1) * q.channels + first : nullptr;
  const int64_t channels = q.channels;
  Vec weight[TAPS], window[TAPS], later[TAPS], grad_weight[TAPS];
#pragma GCC unroll 8
  for (int k = 0; k < TAPS; k++) {
    weight[k] = load(work + k * LANES);
    window[k] = load(work + (TAPS + k) * LANES);
    later[k] = load(work + (2 * TAPS + k) * LANES);
    grad_weight[k] = load(work + (3 * TAPS + k) * LANES);
  }
  const float *const follows = work + 4 * TAPS * LANES;
  const Vec bias = load(work + 5 * TAPS * LANES);
  Vec grad_bias = load(work + (5 * TAPS + 1) * LANES);
  for (int64_t j = begin; j < end; j++) {
    Vec inner;
    if (j < length) {
      const int64_t t = from + step * j;
      Vec sum = bias;
#pragma GCC unroll 8
      for (int k = 0; k + 1 < TAPS; k++) {
        window[k] = window[k + 1];
        sum += weight[k] * window[k];
      }
      window[TAPS - 1] = load_some(at(x, row, t) + first, count);
      sum += weight[TAPS - 1] * window[TAPS - 1];
      const Vec s = logistic(sum);
      const Vec dy = load_some(at(grad_y, row, t) + first, count);
      inner = dy * s * (all(1.0f) + sum * (all(1.0f) - s));
#pragma GCC unroll 8
      for (int k = 0; k < TAPS; k++) grad_weight[k] += inner * window[k];
      grad_bias += inner;
    } else {
      inner = load(follows + (j - length) * LANES);
    }
    if (carry && j < TAPS - 1) store_some(carry + j * channels, inner, count);
#pragma GCC unroll 8
    for (int k = 0; k + 1 < TAPS; k++) later[k] = later[k + 1];
    later[TAPS - 1] = inner;
    if (j >= TAPS - 1) {
      Vec grad = {};
#pragma GCC unroll 8
      for (int k = 0; k < TAPS; k++) grad += later[k] * weight[TAPS - 1 - k];
      float *to = at_mutable(grad_x, row, from + step * (j - TAPS + 1)) + first;
      if (adds) grad += load_some(to, count);
      store_some(to, grad, count);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < TAPS; k++) {
    store(work + (TAPS + k) * LANES, window[k]);
    store(work + (2 * TAPS + k) * LANES, later[k]);
    store(work + (3 * TAPS + k) * LANES, grad_weight[k]);
  }
  store(work + (5 * TAPS + 1) * LANES, grad_bias);
}

template <int TAPS>
TARGET static void convolve_row_back(const Convolution &q, int64_t row, float *work) {
  const int64_t blocks = blocks_of(q.channel_begin, q.channel_end);
  const int64_t floats = BACK_VECTORS * LANES;
  for (int64_t i = 0; i < blocks * floats; i++) work[i] = 0.0f;
  for (int64_t block = 0; block < blocks; block++) {
    float *to = work + block * floats;
    const int64_t first = q.channel_begin + block * LANES, left = q.channel_end - first;
    turn(q.weight + first * TAPS, TAPS, left < LANES ? left : LANES, 1.0f, to);
    for (int k = 1; k < TAPS; k++) {  // the window's first one moves out at once
      const int64_t j = k - TAPS;
      if (-j > q.before) continue;
      store(to + (TAPS + k) * LANES, load_some(at(q.x, row, position_of(q, j)) + first, left));
    }
    for (int k = 0; q.carry && k + 1 < TAPS; k++)
      store(to + (4 * TAPS + k) * LANES,
            load_some(q.carry + (row * (TAPS - 1) + k) * q.channels + first, left));
    if (q.bias) store(to + 5 * TAPS * LANES, load_some(q.bias + first, left));
  }
  // Few positions of all channels at a time: whole rows are read, and used at once.
  const int64_t ends = q.length + TAPS - 1;
  for (int64_t begin = 0; begin < ends; begin += BACK_POSITIONS) {
    const int64_t end = begin + BACK_POSITIONS < ends ? begin + BACK_POSITIONS : ends;
    for (int64_t block = 0; block < blocks; block++)
      convolve_back<TAPS>(q, row, q.channel_begin + block * LANES, begin, end,
                          work + block * floats);
  }
  for (int64_t block = 0; block < blocks; block++) {
    const float *from = work + block * floats;
    const int64_t first = q.channel_begin + block * LANES, left = q.channel_end - first;
    for (int64_t k = 0; k < TAPS; k++)
      for (int64_t lane = 0; lane < LANES && lane < left; lane++)
        q.grad_weight[(row * q.channels + first + lane) * TAPS + k] =
            from[(3 * TAPS + k) * LANES + lane];
    store_some(q.grad_bias + row * q.channels + first, load(from + (5 * TAPS + 1) * LANES), left);
  }
}

TARGET static int convolve_backward(const Convolution &q) {
  const int64_t blocks = blocks_of(q.channel_begin, q.channel_end);
  const int64_t bytes = blocks * BACK_VECTORS * LANES * sizeof(float);
  float *work = (float *)aligned_alloc(64, (bytes / 64 + 1) * 64);
  if (!work) return 1;
  for (int64_t row = q.row_begin; row < q.row_end; row++) {
    switch (q.taps) {
      case 1: convolve_row_back<1>(q, row, work); break;
      case 2: convolve_row_back<2>(q, row, work); break;
      case 3: convolve_row_back<3>(q, row, work); break;
      case 4: convolve_row_back<4>(q, row, work); break;
      case 5: convolve_row_back<5>(q, row, work); break;
      case 6: convolve_row_back<6>(q, row, work); break;
      case 7: convolve_row_back<7>(q, row, work); break;
      default: convolve_row_back<8>(q, row, work);
    }
  }
  free(work);
  return 0;
}

// ---- norm

TARGET static void norm_position(const Norm &q, const float *x, float *y) {
  const float size = (float)q.width;
  Vec total = {}, squares = {};
  for (int64_t i = 0; i < q.width; i += LANES) total += load_some(x + i, q.width - i);
  const Vec mean = q.centre ? all(sum_of(total) / size) : (Vec){};
  for (int64_t i = 0; i < q.width; i += LANES) {
    const int64_t left = q.width - i;
    Vec off = load_some(x + i, left) - mean;
    // Lanes behind the last hold zeros, which the mean must not reach.
    if (left < LANES) off = load_some((const float *)&off, left);
    squares += off * off;
  }
  const Vec scale = all(1.0f / __builtin_sqrtf(sum_of(squares) / size + q.epsilon));
  for (int64_t i = 0; i < q.width; i += LANES) {
    const int64_t left = q.width - i;
    Vec value = (load_some(x + i, left) - mean) * scale * load_some(q.weight + i, left);
    if (q.bias) value += load_some(q.bias + i, left);
    store_some(y + i, value, left);
  }
}

TARGET static int norm(const Norm &q) {
  for (int64_t row = 0; row < q.rows; row++)
    for (int64_t t = 0; t < q.length; t++)
      norm_position(q, at(q.x, row, t), at_mutable(q.y, row, t));
  return 0;
}

TARGET static void norm_position_back(const NormBackward &q, int64_t row, int64_t t) {
  const float *x = at(q.x, row, t), *grad_y = at(q.grad_y, row, t), *add = at(q.add, row, t);
  float *grad_x = at_mutable(q.grad_x, row, t);
  const float size = (float)q.width;
  Vec total = {}, squares = {}, grads = {}, along = {};
  for (int64_t i = 0; i < q.width; i += LANES) total += load_some(x + i, q.width - i);
  const Vec mean = q.centre ? all(sum_of(total) / size) : (Vec){};
  for (int64_t i = 0; i < q.width; i += LANES) {
    const int64_t left = q.width - i;
    Vec off = load_some(x + i, left) - mean;
    if (left < LANES) off = load_some((const float *)&off, left);  // as in norm_position
    const Vec grad = load_some(grad_y + i, left) * load_some(q.weight + i, left);
    squares += off * off;
    grads += grad;
    along += grad * off;
  }
  const float factor = 1.0f / __builtin_sqrtf(sum_of(squares) / size + q.epsilon);
  const Vec scale = all(factor), slope = all(sum_of(along) / size * factor * factor);
  const Vec middle = q.centre ? all(sum_of(grads) / size) : (Vec){};
  for (int64_t i = 0; i < q.width; i += LANES) {
    const int64_t left = q.width - i;
    const Vec off = load_some(x + i, left) - mean, dy = load_some(grad_y + i, left);
    const Vec grad = dy * load_some(q.weight + i, left);
    float *for_weight = q.grad_weight + i, *for_bias = q.grad_bias + i;
    store_some(for_weight, load_some(for_weight, left) + dy * off * scale, left);
    store_some(for_bias, load_some(for_bias, left) + dy, left);
    store_some(grad_x + i, load_some(add + i, left) + scale * (grad - middle - off * slope), left);
  }
}

TARGET static int norm_backward(const NormBackward &q) {
  for (int64_t i = 0; i < q.width; i++) q.grad_weight[i] = q.grad_bias[i] = 0.0f;
  for (int64_t row = 0; row < q.rows; row++)
    for (int64_t t = 0; t < q.length; t++) norm_position_back(q, row, t);
  return 0;
}

// ---- gate

TARGET static int gate_backward(const GateBackward &q) {
  for (int64_t row = 0; row < q.rows; row++) {
    for (int64_t t = 0; t < q.length; t++) {
      float *y = at_mutable(q.y, row, t), *gate = at_mutable(q.gate, row, t);
      float *grad = at_mutable(q.grad, row, t);
      for (int64_t i = 0; i < q.width; i += LANES) {
        const int64_t left = q.width - i;
        const Vec value = load_some(y + i, left), g = load_some(gate + i, left);
        const Vec back = load_some(grad + i, left), s = logistic(g), open = g * s;
        store_some(y + i, back * open, left);
        store_some(gate + i, back * value * (s + open * (all(1.0f) - s)), left);
        store_some(grad + i, value * open, left);
      }
    }
  }
  return 0;
}
