// GroupNorm (Wu and He 2018) of an image in channels-last memory, or of two side by side.
//
//   y = (x - mean) / sqrt(variance + eps) * weight + bias, then y * sigmoid(y) if asked for,
//
// where mean and variance (of all, not of all but one) are those of a group of channels of one
// image, over all of its pixels. An offset for each channel is added to x first.
//
// Memory holds rows: a pixel with all of its channels. A block of threads takes a *tile* of channels
// (some whole groups) of a *slab* of pixels. A thread takes WIDE neighbouring channels, always the
// same, and goes down the slab, so neighbouring threads read neighbouring addresses, and there are
// as many slabs as keep the whole card busy. It needs two launches, because no block may go on
// before all have seen their slab.
//
// 1. group_norm_statistics: each thread keeps a mean and a sum of squared differences M2 for each of
//    its channels. Four pixels at a time are averaged and merged into them by the formula of Chan,
//    Golub and LeVeque 1979, for counts m and n and d = mean_n - mean_m:
//        mean = mean_m + d * n / (m + n),   M2 = M2_m + M2_n + d^2 * m * n / (m + n).
//    No large squares are subtracted from each other, so a mean of any size costs no digits. What
//    all threads have is merged to one mean and M2 for each group and slab.
// 2. group_norm_apply: each block merges those of all slabs, and writes its tile of its slab.
//
// Where a group is wider than a block, it is cut into `parts`, which have statistics of their own in
// 1. and are merged in 2.

struct GroupNorm {
  const Element* x;       // [images, pixels, channels]
  const Element* skip;    // [images, pixels, skip_channels]: more channels, after those of x
  const Element* offset;  // [images or 1, channels] for x alone, or null
  const Element* shared;  // [channels], added to the offset, or null
  const Element* weight;  // [channels + skip_channels]
  const Element* bias;    // [channels + skip_channels]
  float2* statistics;     // [images, groups, parts, slabs]: mean, M2
  Element* y;             // [images, pixels, channels + skip_channels]
  int64 pixels;
  int64 rows;             // pixels of a slab; the last may have fewer
  int channels;
  int skip_channels;
  int offset_stride;      // channels, or 0 where all images share the offset
  int width;              // channels of a part
  int parts;              // parts of a group
  int tile;               // parts of a tile
  float eps;
  int silu;
};

constexpr int GROUP_NORM_THREADS = 256;

// Where a thread works: `rows` threads stand below each other for every `lanes` beside each other.
template <int V>
struct Place {
  int lanes, rows, row, channel;
  int64 first, last;      // pixels of the slab
  const Element* from;    // the thread's channels of the image's first pixel
  int stride;             // from one pixel to the next
  bool in_x;

  __device__ Place(const GroupNorm& a) {
    lanes = a.tile * a.width / V;
    rows = GROUP_NORM_THREADS / lanes;
    row = threadIdx.x / lanes;
    channel = blockIdx.y * a.tile * a.width + threadIdx.x % lanes * V;
    first = blockIdx.x * a.rows;
    last = min(first + a.rows, a.pixels);
    in_x = channel < a.channels;
    stride = in_x ? a.channels : a.skip_channels;
    from = (in_x ? a.x + channel : a.skip + (channel - a.channels)) + blockIdx.z * a.pixels * stride;
  }
  __device__ bool works() const { return row < rows; }
};

// Fills `offset` with what is added to each of the thread's channels.
template <int V>
__device__ __forceinline__ void read_offset(const GroupNorm& a, const Place<V>& at, float* offset) {
  Pack<V> pack;
#pragma unroll
  for (int i = 0; i < V; i++) offset[i] = 0.f;
  if (a.offset && at.in_x) {
    pack = load_unaligned<V>(a.offset + (int64)blockIdx.z * a.offset_stride + at.channel);
#pragma unroll
    for (int i = 0; i < V; i++) offset[i] = widen(pack.each[i]);
  }
  if (a.shared && at.in_x) {
    pack = load_unaligned<V>(a.shared + at.channel);
#pragma unroll
    for (int i = 0; i < V; i++) offset[i] += widen(pack.each[i]);
  }
}

template <int V>
__device__ __forceinline__ void statistics(const GroupNorm& a) {
  __shared__ float means[V][GROUP_NORM_THREADS], squares[V][GROUP_NORM_THREADS];
  __shared__ float counts[GROUP_NORM_THREADS];  // pixels that each row of threads has seen
  Place<V> at(a);
  if (at.works()) {
    float offset[V], mean[V] = {}, m2[V] = {}, count = 0.f;
    read_offset(a, at, offset);
    int64 pixel = at.first + at.row;
    for (; pixel + 3 * at.rows < at.last; pixel += 4 * at.rows) {
      Pack<V> packs[4];
#pragma unroll
      for (int j = 0; j < 4; j++)
        packs[j] = load_pack<V>(at.from + (pixel + j * at.rows) * at.stride);
      float share = 4.f / (count + 4.f);
#pragma unroll
      for (int i = 0; i < V; i++) {
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = widen(packs[j].each[i]) + offset[i];
        float middle = ((x[0] + x[1]) + (x[2] + x[3])) * .25f;
        float distance = middle - mean[i];
        mean[i] += distance * share;
        m2[i] += distance * distance * (count * share);
#pragma unroll
        for (int j = 0; j < 4; j++) m2[i] += (x[j] - middle) * (x[j] - middle);
      }
      count += 4.f;
    }
    for (; pixel < at.last; pixel += at.rows) {
      Pack<V> pack = load_pack<V>(at.from + pixel * at.stride);
      count += 1.f;
#pragma unroll
      for (int i = 0; i < V; i++) {
        float x = widen(pack.each[i]) + offset[i], distance = x - mean[i];
        mean[i] += distance / count;
        m2[i] += distance * (x - mean[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < V; i++) means[i][threadIdx.x] = mean[i], squares[i][threadIdx.x] = m2[i];
    if (threadIdx.x % at.lanes == 0) counts[at.row] = count;
  }
  __syncthreads();
  // A warp merges a part: what each row of threads has of each of its channels.
  int entries = at.rows * a.width, lane = threadIdx.x % 32;
  float total = (float)(at.last - at.first) * a.width;
  for (int part = threadIdx.x / 32; part < a.tile; part += GROUP_NORM_THREADS / 32) {
    float sum = 0.f, m2 = 0.f;
    for (int e = lane; e < entries; e += 32) {
      int channel = part * a.width + e % a.width, row = e / a.width;
      sum += counts[row] * means[channel % V][row * at.lanes + channel / V];
    }
    float mean = sum_over(sum, 32) / total;
    for (int e = lane; e < entries; e += 32) {
      int channel = part * a.width + e % a.width, row = e / a.width;
      float distance = means[channel % V][row * at.lanes + channel / V] - mean;
      m2 += squares[channel % V][row * at.lanes + channel / V] + counts[row] * distance * distance;
    }
    m2 = sum_over(m2, 32);
    int64 number = ((int64)blockIdx.z * gridDim.y + blockIdx.y) * a.tile + part;
    if (lane == 0) store(a.statistics + number * gridDim.x + blockIdx.x, float2{mean, m2});
  }
}

template <int V>
__device__ __forceinline__ void apply(const GroupNorm& a) {
  __shared__ float means[GROUP_NORM_THREADS], scales[GROUP_NORM_THREADS];
  Place<V> at(a);
  int lane = threadIdx.x % 32, slabs = gridDim.x, entries = slabs * a.parts;
  float all = (float)a.pixels * a.width * a.parts;
  float full = (float)a.rows * a.width;
  float last = (float)(a.pixels - (slabs - 1) * a.rows) * a.width;
  for (int part = threadIdx.x / 32; part < a.tile; part += GROUP_NORM_THREADS / 32) {
    int group = (blockIdx.y * a.tile + part) / a.parts;
    int64 groups = gridDim.y * a.tile / a.parts;
    const float2* from = a.statistics + (blockIdx.z * groups + group) * entries;
    float sum = 0.f, m2 = 0.f;
    for (int e = lane; e < entries; e += 32)
      sum += load(from + e).x * (e % slabs == slabs - 1 ? last : full);
    float mean = sum_over(sum, 32) / all;
    for (int e = lane; e < entries; e += 32) {
      float2 entry = load(from + e);
      float distance = entry.x - mean;
      m2 += entry.y + (e % slabs == slabs - 1 ? last : full) * distance * distance;
    }
    m2 = sum_over(m2, 32);
    if (lane == 0) means[part] = mean, scales[part] = rsqrtf(m2 / all + a.eps);
  }
  __syncthreads();
  if (!at.works()) return;
  float shift[V], scale[V], bias[V];
  read_offset(a, at, shift);
  Pack<V> weights = load_unaligned<V>(a.weight + at.channel);
  Pack<V> biases = load_unaligned<V>(a.bias + at.channel);
  int in_tile = threadIdx.x % at.lanes * V, part = in_tile / a.width, next = (part + 1) * a.width;
#pragma unroll
  for (int i = 0; i < V; i++) {
    if (in_tile + i == next) part++, next += a.width;
    shift[i] -= means[part];
    scale[i] = scales[part] * widen(weights.each[i]);
    bias[i] = widen(biases.each[i]);
  }
  int channels = a.channels + a.skip_channels;
  Element* to = a.y + blockIdx.z * a.pixels * channels + at.channel;
  for (int64 pixel = at.first + at.row; pixel < at.last; pixel += 4 * at.rows) {
    Pack<V> packs[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (pixel + j * at.rows < at.last)
        packs[j] = load_pack<V>(at.from + (pixel + j * at.rows) * at.stride);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (pixel + j * at.rows >= at.last) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        float y = (widen(packs[j].each[i]) + shift[i]) * scale[i] + bias[i];
        packs[j].each[i] = narrow(a.silu ? silu(y) : y);
      }
      store_pack<V>(to + (pixel + j * at.rows) * channels, packs[j]);
    }
  }
}

#define GROUP_NORM extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS, 3)
GROUP_NORM group_norm_statistics_wide(const GroupNorm a) { statistics<WIDE>(a); }
GROUP_NORM group_norm_statistics_narrow(const GroupNorm a) { statistics<1>(a); }
GROUP_NORM group_norm_apply_wide(const GroupNorm a) { apply<WIDE>(a); }
GROUP_NORM group_norm_apply_narrow(const GroupNorm a) { apply<1>(a); }
