// Linear layers for a few rows: the time embedding, and what residual blocks project it to.
//
//   out[b, o] = bias[o] + added[o] + sum over k of x[b, k] * weight[o, k]
//                                  + sum over k of x2[b, k] * weight2[o, k],
//
// then SiLU if asked for. Reading the weights is all that takes time: a warp reads one row of them
// for up to four rows of x at once. Up to MOST layers share a launch, one for each blockIdx.y.
//
// Where x is null it is the sinusoidal embedding (Vaswani et al. 2017, section 3.5) of the
// timesteps: the cosines, then the sines, of t * 10000^(-k / half) for k < half = inputs / 2. They
// are rounded where torch rounds them: for t = 1000 an error of 2^-24 in a factor turns the angle by
// 6e-5.

struct Layer {
  const Element* x;         // [rows, inputs], or null: the sinusoids
  const Element* weight;    // [outputs, inputs]
  const Element* bias;      // [outputs]
  const Element* x2;        // [rows, inputs], or null: there is no second product
  const Element* weight2;   // [outputs, inputs]
  const Element* added;     // [outputs], or null
  Element* out;             // [rows, outputs]
  Element* active;          // [rows, outputs]: SiLU of out, or null
  int inputs;
  int outputs;
};

constexpr int MOST = 48;    // a launch has 4 KiB of arguments

struct Layers {
  const float* timesteps;   // [rows]
  int rows;
  int silu;
  float step;               // -ln(10000) / half, of the sinusoids
  Layer layer[MOST];
};

constexpr int ROWS = 4, EMBEDDING_THREADS = 256;
constexpr int AHEAD = 5;  // packs of weights that a thread asks for before it needs them

// Returns the sinusoid number k. sinf and cosf would need memory for arguments of any size.
__device__ __forceinline__ float sinusoid(float t, float step, int k, int half) {
  float angle = t * expf(step * (k < half ? k : k - half));
  float turns = rintf(angle * .15915494f);
  float rest = fmaf(turns, -6.2831855f, angle);  // 2 pi, and what float32 leaves out of it
  float half_turns = fmaf(turns, 1.7484556e-7f, rest) * .31830989f;
  return k < half ? cospif(half_turns) : sinpif(half_turns);
}

// Adds the warp's share of the products of a row of weights with up to ROWS rows of x, from `first`.
template <int V>
__device__ __forceinline__ void multiply(
    const Layers& a, const Element* x, const Element* weight, int inputs, int first, float* sums) {
  for (int start = threadIdx.x % 32 * V; start < inputs; start += AHEAD * 32 * V) {
    Pack<V> weights[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
      if (start + j * 32 * V < inputs) weights[j] = load_pack<V>(weight + start + j * 32 * V);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      int k = start + j * 32 * V;
      if (k >= inputs) break;
#pragma unroll
      for (int b = 0; b < ROWS; b++) {
        if (first + b >= a.rows) break;
        Pack<V> pack = load_pack<V>(x + (int64)(first + b) * inputs + k);
#pragma unroll
        for (int i = 0; i < V; i++) sums[b] += widen(pack.each[i]) * widen(weights[j].each[i]);
      }
    }
  }
}

// The same for the sinusoids in place of x.
__device__ __forceinline__ void multiply_sinusoids(
    const Layers& a, const Element* weight, int inputs, int first, float* sums) {
#pragma unroll 1
  for (int k = threadIdx.x % 32; k < inputs; k += 32) {
    float factor = widen(load_pack<1>(weight + k).each[0]);
#pragma unroll
    for (int b = 0; b < ROWS; b++)
      if (first + b < a.rows)
        sums[b] += sinusoid(load(a.timesteps + first + b), a.step, k, inputs / 2) * factor;
  }
}

template <int V>
__device__ __forceinline__ void embedding(const Layers& a) {
  const Layer& layer = a.layer[blockIdx.y];
  int output = blockIdx.x * (EMBEDDING_THREADS / 32) + threadIdx.x / 32;
  if (output >= layer.outputs) return;
  float bias = widen(load_pack<1>(layer.bias + output).each[0]);
  if (layer.added) bias += widen(load_pack<1>(layer.added + output).each[0]);
  int64 at = (int64)output * layer.inputs;
  for (int first = 0; first < a.rows; first += ROWS) {
    float sums[ROWS] = {};
    if (!layer.x) multiply_sinusoids(a, layer.weight + at, layer.inputs, first, sums);
#pragma unroll 1
    for (int product = 0; product < 2; product++) {
      const Element* x = product ? layer.x2 : layer.x;
      const Element* weight = product ? layer.weight2 : layer.weight;
      if (x) multiply<V>(a, x, weight + at, layer.inputs, first, sums);
    }
#pragma unroll
    for (int b = 0; b < ROWS; b++) {
      float out = sum_over(sums[b], 32) + bias;
      int64 to = (int64)(first + b) * layer.outputs + output;
      Pack<1> pack;
      if (threadIdx.x % 32 == 0 && first + b < a.rows) {
        pack.each[0] = narrow(a.silu ? silu(out) : out);
        store_pack<1>(layer.out + to, pack);
        if (layer.active) {
          pack.each[0] = narrow(silu(out));
          store_pack<1>(layer.active + to, pack);
        }
      }
    }
  }
}

#define EMBEDDING extern "C" __global__ void __launch_bounds__(EMBEDDING_THREADS, 2)
EMBEDDING embedding_wide(const Layers a) { embedding<WIDE>(a); }
EMBEDDING embedding_narrow(const Layers a) { embedding<1>(a); }
