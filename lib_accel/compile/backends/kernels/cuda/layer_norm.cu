// LayerNorm (Ba et al. 2016) of a sum, which is written down too.
//
//   sum = x + residual + offset,   y = (sum - mean) / sqrt(variance + eps) * weight + bias,
//
// with mean and variance over the channels of a token. `lanes` threads share a token and hold all of
// it in registers, so the variance is that of the differences from the mean, and each number is read
// once. Tokens that are too wide for that are read three times, by a whole block each.

struct LayerNorm {
  const Element* x;         // [tokens, channels]
  const Element* residual;  // [tokens, channels], or null
  const Element* offset;    // [channels], or null
  const Element* weight;    // [channels]
  const Element* bias;      // [channels]
  Element* sum;             // [tokens, channels], or null where there is nothing to add
  Element* y;               // [tokens, channels]
  int64 tokens;
  int channels;
  int lanes;                // a power of two, at most 32
  float eps;
};

constexpr int LAYER_NORM_THREADS = 128;

// V numbers of each tensor, all asked for before any is needed.
template <int V>
struct Parts {
  Pack<V> x, residual, offset;

  __device__ void read(const LayerNorm& a, int64 at, int channel) {
    x = load_pack<V>(a.x + at);
    if (a.residual) residual = load_pack<V>(a.residual + at);
    if (a.offset) offset = load_pack<V>(a.offset + channel);
  }
  __device__ void add(const LayerNorm& a, float* sum) const {
#pragma unroll
    for (int i = 0; i < V; i++) {
      sum[i] = widen(x.each[i]);
      if (a.offset) sum[i] += widen(offset.each[i]);
      if (a.residual) sum[i] += widen(residual.each[i]);
    }
  }
};

template <int V>
__device__ __forceinline__ void write(Element* to, const float* values) {
  Pack<V> pack;
#pragma unroll
  for (int i = 0; i < V; i++) pack.each[i] = narrow(values[i]);
  store_pack<V>(to, pack);
}

template <int V>
__device__ __forceinline__ void write_norm(
    Element* to, float* sum, float mean, float scale, Pack<V> weights, Pack<V> biases) {
#pragma unroll
  for (int i = 0; i < V; i++)
    sum[i] = (sum[i] - mean) * scale * widen(weights.each[i]) + widen(biases.each[i]);
  write<V>(to, sum);
}

// Adds pairs, then pairs of pairs, so that few numbers are added to a large sum.
template <int V>
__device__ __forceinline__ float sum_of(const float* values) {
  return sum_of<V / 2>(values) + sum_of<V / 2>(values + V / 2);
}
template <>
__device__ __forceinline__ float sum_of<1>(const float* values) {
  return values[0];
}

// EACH: how many elements a thread can hold.
template <int V, int EACH>
__device__ __forceinline__ void layer_norm(const LayerNorm& a) {
  constexpr int STEPS = EACH / V;
  int first = threadIdx.x % a.lanes * V, step = a.lanes * V;
  int64 token = (int64)blockIdx.x * (LAYER_NORM_THREADS / a.lanes) + threadIdx.x / a.lanes;
  int64 at = token * a.channels;
  int end = token < a.tokens ? a.channels : 0;  // all threads of a warp take part in its sums
  Parts<V> parts[STEPS];
  float sum[STEPS][V], total = 0.f, m2 = 0.f;
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    if (first + s * step < end) parts[s].read(a, at + first + s * step, first + s * step);
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    if (first + s * step < end) {
      parts[s].add(a, sum[s]);
      total += sum_of<V>(sum[s]);
    }
  Pack<V> weights[STEPS], biases[STEPS];
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    if (first + s * step < end) {
      weights[s] = load_pack<V>(a.weight + first + s * step);
      biases[s] = load_pack<V>(a.bias + first + s * step);
      if (a.sum) write<V>(a.sum + at + first + s * step, sum[s]);
    }
  float mean = sum_over(total, a.lanes) / a.channels;
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    if (first + s * step < end) {
      float squares[V];
#pragma unroll
      for (int i = 0; i < V; i++) squares[i] = (sum[s][i] - mean) * (sum[s][i] - mean);
      m2 += sum_of<V>(squares);
    }
  float scale = rsqrtf(sum_over(m2, a.lanes) / a.channels + a.eps);
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    if (first + s * step < end)
      write_norm<V>(a.y + at + first + s * step, sum[s], mean, scale, weights[s], biases[s]);
}

// Adds over a block of LAYER_NORM_THREADS.
__device__ __forceinline__ float sum_over_block(float value) {
  __shared__ float warps[LAYER_NORM_THREADS / 32];
  value = sum_over(value, 32);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0.f;
  for (int i = 0; i < LAYER_NORM_THREADS / 32; i++) value += warps[i];
  return value;
}

// One element at a time, at any address; the sum is computed anew each time it is needed.
__device__ __forceinline__ float sum_at(const LayerNorm& a, int channel) {
  Parts<1> parts;
  float sum;
  parts.read(a, (int64)blockIdx.x * a.channels + channel, channel);
  parts.add(a, &sum);
  return sum;
}
__device__ __forceinline__ void layer_norm_of_any_width(const LayerNorm& a) {
  int64 at = (int64)blockIdx.x * a.channels;
  float total = 0.f, m2 = 0.f;
  for (int c = threadIdx.x; c < a.channels; c += LAYER_NORM_THREADS) {
    float sum = sum_at(a, c);
    total += sum;
    if (a.sum) write<1>(a.sum + at + c, &sum);
  }
  float mean = sum_over_block(total) / a.channels;
  for (int c = threadIdx.x; c < a.channels; c += LAYER_NORM_THREADS) {
    float distance = sum_at(a, c) - mean;
    m2 += distance * distance;
  }
  float scale = rsqrtf(sum_over_block(m2) / a.channels + a.eps);
  for (int c = threadIdx.x; c < a.channels; c += LAYER_NORM_THREADS) {
    float sum = sum_at(a, c);
    write_norm<1>(
        a.y + at + c, &sum, mean, scale, load_pack<1>(a.weight + c), load_pack<1>(a.bias + c));
  }
}

// The number of blocks that a multiprocessor shall have room for limits their registers.
#define LAYER_NORM(BLOCKS) \
  extern "C" __global__ void __launch_bounds__(LAYER_NORM_THREADS, BLOCKS)
LAYER_NORM(ELEMENT ? 4 : 2) layer_norm_wide_40(const LayerNorm a) { layer_norm<WIDE, 40>(a); }
LAYER_NORM(2) layer_norm_wide_48(const LayerNorm a) { layer_norm<WIDE, 48>(a); }
LAYER_NORM(6) layer_norm_any(const LayerNorm a) { layer_norm_of_any_width(a); }
