// The C interface: plain structs of pointers and sizes, mirrored in library.py field by field.
//
// Arrays are float32, sequences as (batch, length, channel) with the last axis contiguous and the
// other two strides given, in floats. A call works on the batch rows [row_begin, row_end) and the
// channels [channel_begin, channel_end); calls on different ones may run side by side.
#ifndef GENEBOLD_ARGUMENTS_H
#define GENEBOLD_ARGUMENTS_H
#include <stdint.h>

typedef struct {
  float *data;
  int64_t row, position;  // strides in floats
} Sequence;

// The selective scan
//   delta = softplus(low W^T + bias); `low` has a value a channel when `rank` is zero
//   h = exp(delta A) h + delta B u;  y = C h + skip u;  optionally y *= silu(gate)
typedef struct {
  int64_t length, channels, states, rank;
  int64_t row_begin, row_end, channel_begin, channel_end;
  int64_t reverse;     // from the last position to the first
  int64_t accumulate;  // add to y before gating
  int64_t activate;    // whether softplus is wanted
  Sequence u, low, b, c;
  const float *weight;  // [channels, rank]
  const float *bias;    // [channels], or null
  const float *a;       // [channels, states]
  const float *skip;    // [channels], or null
  Sequence gate;        // data null for none
  Sequence y;
  Sequence kept;  // data null, or states before every tile of KEPT_EVERY positions in the order
                  // of reading: [batch, tiles, states, channels], the last two axes dense
  float *state;  // null for zeros, or where to begin: [batch, states, channels], left as the end
} ScanForward;

typedef struct {
  ScanForward forward;  // `kept` filled; y, gate and accumulate are not used
  Sequence grad_y;
  Sequence grad_u;
  Sequence grad_low;   // of softplus' argument (of delta itself where there is no softplus)
  float *grad_b_c;     // [groups, batch, length, 2 states], one group a call: channel_begin / group
  int64_t group, rows;  // channels of a group; batch rows in all
  float *grad_a;       // [batch, states, channels]
  float *grad_skip;    // [batch, channels]
  float *carry;  // null for zeros, or dL/dh behind the last position read: [batch, states,
                 // channels], left as that before the first
} ScanBackward;

// Depthwise convolution over the last (or, reversed, the next) `taps` positions, bias and SiLU.
typedef struct {
  int64_t length, channels, taps;
  int64_t row_begin, row_end, channel_begin, channel_end;
  int64_t reverse;
  int64_t before;      // positions read before the first, which lie beside it in memory
  int64_t accumulate;  // backward only: add to grad_x
  Sequence x, y;
  const float *weight;  // [channels, taps], the last tap on the position itself
  const float *bias;    // [channels], or null
  Sequence grad_y, grad_x;           // backward only
  float *grad_weight, *grad_bias;    // [batch, channels, taps], [batch, channels]
  float *carry;  // backward only: null for zeros, or the gradient before SiLU of the taps - 1
                 // positions read after the last: [batch, taps - 1, channels], left as the first's
} Convolution;

// y = x weight^T + bias, of matrices whose rows are dense; or y + that.
typedef struct {
  int64_t rows, depth, width;
  int64_t accumulate;
  int64_t bfloat16;  // whether weights are, and x is to be rounded
  int64_t x_row, y_row;  // strides in floats
  const float *x;
  float *y;
  const float *weight;  // [panels of PANEL columns, depth, PANEL], zeros behind the last column; for
                        // bfloat16 [panels, half the depth, PANEL, 2] of that, zeros behind the last
  const float *bias;    // [width], or null
} Product;

// y = (x - mean) / sqrt(mean square + epsilon) weight + bias, over the last axis.
typedef struct {
  int64_t rows, length, width;
  int64_t centre;  // whether the mean is taken off: a layer norm, else a root mean square norm
  Sequence x, y;
  const float *weight, *bias;  // [width]; no bias where null
  float epsilon;
} Norm;

// Backwards through that norm: grad_x = add + dL/dx, with grad_y = dL/dy.
typedef struct {
  int64_t rows, length, width;
  int64_t centre;
  Sequence x, grad_y, add, grad_x;
  const float *weight;
  float *grad_weight, *grad_bias;  // [width], summed over rows and positions
  float epsilon;
} NormBackward;

// Backwards through y silu(gate), in place: y, gate and dL/d(y silu(gate)) become dL/dy, dL/dgate
// and y silu(gate).
typedef struct {
  int64_t rows, length, width;
  Sequence y, gate, grad;
} GateBackward;

// Weights [width, depth] laid out as a product takes them, in words of 32 bits.
typedef struct {
  int64_t depth, width;
  int64_t row, column;  // strides in words
  const int32_t *from;
  int32_t *to;  // [panels of PANEL columns, depth, PANEL]
} Packing;

// A reader's visit to a tile of a stream in one of Caduceus' layers: norm, input projection,
// convolution, projection of time steps and states, scan, gate, output projection. What belongs to
// the stream is given from its first position on (norm's x, inputs' y, convolution's x, scan's y,
// outputs' x and y), all else lies in memory for one tile.
typedef struct {
  int64_t start, end;   // the tile
  int64_t first, last;  // whether nobody was here before, and whether nobody comes after
  Norm norm;
  Product inputs;      // of the first visit
  Product gate;        // of the last one; x null where `inputs` gives the gate as well
  Product projection;
  Product outputs;     // of the last visit
  Convolution convolution;  // its length is the stream's
  ScanForward scan;         // its gate is the last visit's
} Visit;

#define KEPT_EVERY 16
#define MAX_TAPS 8
#define PANEL 16
#define INTERFACE_VERSION 6
#endif
