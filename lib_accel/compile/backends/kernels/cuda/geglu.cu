// GEGLU (Shazeer 2020): y = value * GELU(gate), GELU(g) = g / 2 * (1 + erf(g / sqrt(2))).
//
// A row of x has the values and then the gates. An offset for each column is added to both first.
// A thread takes WIDE columns and goes down four rows, so that it reads the offset once.

struct Geglu {
  const Element* x;       // [rows, 2 * columns]
  const Element* offset;  // [2 * columns], or null
  Element* y;             // [rows, columns]
  int64 rows;
  int columns;
  int lanes;              // threads beside each other; blockDim.x / lanes stand below each other
};

template <int V>
__device__ __forceinline__ void geglu(const Geglu& a) {
  int column = (blockIdx.y * a.lanes + threadIdx.x % a.lanes) * V;
  int below = blockDim.x / a.lanes;
  int64 first = (int64)blockIdx.x * below * 4 + threadIdx.x / a.lanes;
  if (column >= a.columns) return;
  float offsets[2][V] = {};
  if (a.offset)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Pack<V> pack = load_pack<V>(a.offset + half * a.columns + column);
#pragma unroll
      for (int i = 0; i < V; i++) offsets[half][i] = widen(pack.each[i]);
    }
  Pack<V> values[4], gates[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int64 row = first + j * below;
    if (row >= a.rows) break;
    values[j] = load_pack<V>(a.x + row * 2 * a.columns + column);
    gates[j] = load_pack<V>(a.x + (row * 2 + 1) * a.columns + column);
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int64 row = first + j * below;
    if (row >= a.rows) break;
#pragma unroll
    for (int i = 0; i < V; i++) {
      float value = widen(values[j].each[i]) + offsets[0][i];
      float gate = widen(gates[j].each[i]) + offsets[1][i];
      values[j].each[i] = narrow(value * (gate * .5f * (1.f + erff(gate * .70710678f))));
    }
    store_pack<V>(a.y + row * a.columns + column, values[j]);
  }
}

extern "C" __global__ void __launch_bounds__(256) geglu_wide(const Geglu a) { geglu<WIDE>(a); }
extern "C" __global__ void __launch_bounds__(256) geglu_narrow(const Geglu a) { geglu<1>(a); }
