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

template <int V>
__device__ __forceinline__ void add_to(float* sum, Pack<V> pack) {
#pragma unroll
  for (int i = 0; i < V; i++) sum[i] += widen(pack.each[i]);
}

// Reads V channels of the sum, and writes them down.
template <int V>
__device__ __forceinline__ void read_sum(const LayerNorm& a, int64 at, int channel, float* sum) {
  Pack<V> pack = load_pack<V>(a.x + at);
#pragma unroll
  for (int i = 0; i < V; i++) sum[i] = widen(pack.each[i]);
  if (a.offset) add_to<V>(sum, load_unaligned<V>(a.offset + channel));
  if (a.residual) add_to<V>(sum, load_pack<V>(a.residual + at));
  if (a.sum) {
#pragma unroll
    for (int i = 0; i < V; i++) pack.each[i] = narrow(sum[i]);
    store_pack<V>(a.sum + at, pack);
  }
}

template <int V>
__device__ __forceinline__ void write_norm(
    const LayerNorm& a, int64 at, int channel, const float* sum, float mean, float scale) {
  Pack<V> weights = load_unaligned<V>(a.weight + channel);
  Pack<V> biases = load_unaligned<V>(a.bias + channel), pack;
#pragma unroll
  for (int i = 0; i < V; i++)
    pack.each[i] =
        narrow((sum[i] - mean) * scale * widen(weights.each[i]) + widen(biases.each[i]));
  store_pack<V>(a.y + at, pack);
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
  int lane = threadIdx.x % a.lanes;
  int64 token = (int64)blockIdx.x * (LAYER_NORM_THREADS / a.lanes) + threadIdx.x / a.lanes;
  bool works = token < a.tokens;  // all threads of a warp take part in its sums
  float sum[STEPS][V], total = 0.f, m2 = 0.f;
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    int channel = (s * a.lanes + lane) * V;
    if (works && channel < a.channels) {
      read_sum<V>(a, token * a.channels + channel, channel, sum[s]);
      total += sum_of<V>(sum[s]);
    }
  }
  float mean = sum_over(total, a.lanes) / a.channels;
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    if (works && (s * a.lanes + lane) * V < a.channels) {
      float squares[V];
#pragma unroll
      for (int i = 0; i < V; i++) squares[i] = (sum[s][i] - mean) * (sum[s][i] - mean);
      m2 += sum_of<V>(squares);
    }
  float scale = rsqrtf(sum_over(m2, a.lanes) / a.channels + a.eps);
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    int channel = (s * a.lanes + lane) * V;
    if (works && channel < a.channels)
      write_norm<V>(a, token * a.channels + channel, channel, sum[s], mean, scale);
  }
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

// One element at a time; the sum is computed anew each time it is needed.
__device__ __forceinline__ void layer_norm_of_any_width(LayerNorm a) {
  int64 start = (int64)blockIdx.x * a.channels;
  float sum, total = 0.f, m2 = 0.f;
  for (int c = threadIdx.x; c < a.channels; c += LAYER_NORM_THREADS)
    read_sum<1>(a, start + c, c, &sum), total += sum;
  a.sum = nullptr;
  float mean = sum_over_block(total) / a.channels;
  for (int c = threadIdx.x; c < a.channels; c += LAYER_NORM_THREADS)
    read_sum<1>(a, start + c, c, &sum), m2 += (sum - mean) * (sum - mean);
  float scale = rsqrtf(sum_over_block(m2) / a.channels + a.eps);
  for (int c = threadIdx.x; c < a.channels; c += LAYER_NORM_THREADS) {
    read_sum<1>(a, start + c, c, &sum);
    write_norm<1>(a, start + c, c, &sum, mean, scale);
  }
}

// The number of blocks that a multiprocessor shall have room for limits their registers.
#define LAYER_NORM(BLOCKS) \
  extern "C" __global__ void __launch_bounds__(LAYER_NORM_THREADS, BLOCKS)
LAYER_NORM(5) layer_norm_wide_40(const LayerNorm a) { layer_norm<WIDE, 40>(a); }
LAYER_NORM(3) layer_norm_wide_64(const LayerNorm a) { layer_norm<WIDE, 64>(a); }
LAYER_NORM(6) layer_norm_any(const LayerNorm a) { layer_norm_of_any_width(a); }
