// Products with weights, for one instruction set: included after lanes.h in the same namespace.
//
// Few rows and columns at a time, whose sums stay in registers until they are whole: each is taken
// over the depth in the same order, so that no result depends on how many rows there are. With
// ADD_PAIRS defined (sums + the dot products of pairs of bfloat16) what is multiplied is rounded to
// bfloat16, two numbers of the depth in the 32 bits of one.

#ifdef ADD_PAIRS
enum { NUMBERS_IN_WORD = 2 };
INLINE Vec add_product(Vec sums, Vec word, Vec weights) { return ADD_PAIRS(sums, word, weights); }
#else
enum { NUMBERS_IN_WORD = 1 };
INLINE Vec add_product(Vec sums, Vec word, Vec weights) { return sums + word * weights; }
#endif

enum {
  // Vectors of sums: what registers hold beside weights, and those of one row among them.
  SUMS = LANES == PANEL ? 24 : 12,
  SUMS_OF_ROW = LANES == PANEL ? 4 : 2,
  // So many rows stay in cache while all weights pass by.
  ROWS_TOGETHER = 192,
  // The sum of so many words is added to those before it: short sums round less.
  DEPTH_TOGETHER = 64
};

// Rows of words, their stride, and the words of the depth.
struct Words {
  const float *data;
  int64_t row, depth;
};

// COUNT rows from `row` on, VECTORS vectors of columns; `words` begins with the first of these rows.
template <int COUNT, int VECTORS>
TARGET static void multiply_few(const Product &q, const Words &words, int64_t row, int64_t column) {
  const int64_t depth = words.depth, x_row = words.row;
  const int64_t apart = LANES == PANEL ? depth * PANEL : LANES;
  const float *x = words.data;
  const float *w = q.weight + column / PANEL * PANEL * depth + column % PANEL;
  float found[COUNT][VECTORS][LANES];
  for (int64_t begin = 0; begin < depth || begin == 0; begin += DEPTH_TOGETHER) {
    const int64_t end = begin + DEPTH_TOGETHER < depth ? begin + DEPTH_TOGETHER : depth;
    Vec sums[COUNT][VECTORS] = {};
    for (int64_t k = begin; k < end; k++) {
      Vec weights[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) weights[v] = load(w + v * apart + k * PANEL);
#pragma GCC unroll 12
      for (int r = 0; r < COUNT; r++) {
        const Vec word = all(x[r * x_row + k]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sums[r][v] = add_product(sums[r][v], word, weights[v]);
      }
    }
    // Into memory at once: around branches the compiler keeps no registers.
    if (begin == 0) {
#pragma GCC unroll 12
      for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(found[r][v], sums[r][v]);
    } else {
#pragma GCC unroll 12
      for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(found[r][v], load(found[r][v]) + sums[r][v]);
    }
  }
  for (int v = 0; v < VECTORS; v++) {
    const int64_t first = column + v * LANES, left = q.width - first;
    const Vec bias = q.bias ? load_some(q.bias + first, left) : (Vec){};
    for (int r = 0; r < COUNT; r++) {
      float *y = q.y + (row + r) * q.y_row + first;
      Vec sum = load(found[r][v]) + bias;
      if (q.accumulate) sum += load_some(y, left);
      store_some(y, sum, left);
    }
  }
}

// VECTORS vectors of columns, as many rows at once as registers hold sums of.
template <int VECTORS>
TARGET static void multiply_columns(const Product &q, Words words, int64_t begin, int64_t end,
                                    int64_t column) {
  enum { COUNT = SUMS / VECTORS < 12 ? SUMS / VECTORS : 12 };
  int64_t row = begin;
  for (; row + COUNT <= end; row += COUNT, words.data += COUNT * words.row)
    multiply_few<COUNT, VECTORS>(q, words, row, column);
  for (; row < end; row++, words.data += words.row)
    multiply_few<1, VECTORS>(q, words, row, column);
}

TARGET static void multiply_rows(const Product &q, const Words &words, int64_t begin, int64_t end) {
  int64_t column = 0;
#define COLUMNS(VECTORS)                                                              \
  if (VECTORS <= SUMS_OF_ROW)                                                         \
    for (; column + (VECTORS - 1) * LANES < q.width; column += VECTORS * LANES)       \
      multiply_columns<VECTORS <= SUMS_OF_ROW ? VECTORS : 1>(q, words, begin, end, column);
  COLUMNS(4)
  COLUMNS(3)
  COLUMNS(2)
  COLUMNS(1)
#undef COLUMNS
}

#ifdef ADD_PAIRS
// COUNT rows rounded, zeros behind the last number of a row.
TARGET static void round_rows(const Product &q, int64_t begin, int64_t end, float *to) {
  const int64_t words = (q.depth + 1) / 2;
  for (int64_t row = begin; row < end; row++, to += words) {
    const float *from = q.x + row * q.x_row;
    for (int64_t i = 0; i < words; i += LANES) {
      const int64_t left = q.depth - 2 * i;
      const Vec low = load_some(from + 2 * i, left);
      const Vec high = left > LANES ? load_some(from + 2 * i + LANES, left - LANES) : (Vec){};
      store_some(to + i, ROUND_PAIRS(low, high), words - i);
    }
  }
}
#endif

TARGET static int multiply(const Product &q) {
  const int64_t depth = (q.depth + NUMBERS_IN_WORD - 1) / NUMBERS_IN_WORD;
#ifdef ADD_PAIRS
  float *rounded = (float *)aligned_alloc(64, (ROWS_TOGETHER * depth / 16 + 1) * 64);
  if (!rounded) return 1;
#endif
  for (int64_t begin = 0; begin < q.rows; begin += ROWS_TOGETHER) {
    const int64_t end = begin + ROWS_TOGETHER < q.rows ? begin + ROWS_TOGETHER : q.rows;
#ifdef ADD_PAIRS
    round_rows(q, begin, end, rounded);
    multiply_rows(q, {rounded, depth, depth}, begin, end);
#else
    multiply_rows(q, {q.x + begin * q.x_row, q.x_row, depth}, begin, end);
#endif
  }
#ifdef ADD_PAIRS
  free(rounded);
#endif
  return 0;
}
