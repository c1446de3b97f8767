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
//    No large squares are subtracted from each other, so a mean of any size costs no digits. Then
//    the threads below each other are merged, and the channels of each group.
// 2. group_norm_apply: each block merges what all slabs have, and writes its tile of fewer pixels,
//    as `x * scale + shift` for each channel (in float32, where that would show how much larger the
//    mean is than the deviation, as `(x - mean) * scale + shift`). It asks for its first pixels
//    before it merges.
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
  int pixels;
  int slab;               // pixels of a slab; the last may have fewer
  int written;            // pixels that a block of group_norm_apply writes; the last may have fewer
  int slabs;
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
  int64 first;            // pixel of the block
  int count;              // pixels of the block
  const Element* from;    // the thread's channels of its first pixel
  int64 step;             // from there to its next pixel
  bool in_x;

  __device__ Place(const GroupNorm& a, int pixels) {
    lanes = a.tile * a.width / V;
    rows = GROUP_NORM_THREADS / lanes;
    row = threadIdx.x / lanes;
    channel = blockIdx.y * a.tile * a.width + threadIdx.x % lanes * V;
    first = (int64)blockIdx.x * pixels;
    count = min(pixels, (int)(a.pixels - first));
    in_x = channel < a.channels;
    int stride = in_x ? a.channels : a.skip_channels;
    from = (in_x ? a.x + channel : a.skip + (channel - a.channels)) +
           (blockIdx.z * (int64)a.pixels + first + row) * stride;
    step = (int64)rows * stride;
  }
  __device__ bool works() const { return row < rows; }
  // Loads the thread's next four pixels, of which `left` are in the block, its other rows counted.
  __device__ void read(Pack<V>* packs, int left) const {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j * rows < left) packs[j] = load_pack<V>(from + j * step);
  }
};

// Fills `offset` with what is added to each of the thread's channels.
template <int V>
__device__ __forceinline__ void read_offset(const GroupNorm& a, const Place<V>& at, float* offset) {
  Pack<V> pack;
#pragma unroll
  for (int i = 0; i < V; i++) offset[i] = 0.f;
  if (a.offset && at.in_x) {
    pack = load_pack<V>(a.offset + (int64)blockIdx.z * a.offset_stride + at.channel);
#pragma unroll
    for (int i = 0; i < V; i++) offset[i] = widen(pack.each[i]);
  }
  if (a.shared && at.in_x) {
    pack = load_pack<V>(a.shared + at.channel);
#pragma unroll
    for (int i = 0; i < V; i++) offset[i] += widen(pack.each[i]);
  }
}

template <int V>
__device__ __forceinline__ void statistics(const GroupNorm& a) {
  __shared__ float means[V][GROUP_NORM_THREADS], squares[V][GROUP_NORM_THREADS];
  __shared__ float counts[GROUP_NORM_THREADS];  // pixels that each row of threads has seen
  Place<V> at(a, a.slab);
  if (at.works()) {
    float offset[V], mean[V] = {}, m2[V] = {}, count = 0.f;
    read_offset(a, at, offset);
    int left = at.count - at.row;
    for (; left > 3 * at.rows; left -= 4 * at.rows, at.from += 4 * at.step) {
      Pack<V> packs[4];
      at.read(packs, left);
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
    for (; left > 0; left -= at.rows, at.from += at.step) {
      Pack<V> pack = load_pack<V>(at.from);
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
  // Each channel: what the rows of threads have of it is merged into what the first row has.
  float pixels = (float)at.count;
  for (int c = threadIdx.x; c < at.lanes * V; c += GROUP_NORM_THREADS) {
    float *mean = means[c / at.lanes] + c % at.lanes, *m2 = squares[c / at.lanes] + c % at.lanes;
    float sum = 0.f, middle, result = 0.f;
    for (int row = 0; row < at.rows; row++) sum += counts[row] * mean[row * at.lanes];
    middle = sum / pixels;
    for (int row = 0; row < at.rows; row++) {
      float distance = mean[row * at.lanes] - middle;
      result += m2[row * at.lanes] + counts[row] * distance * distance;
    }
    *mean = middle, *m2 = result;
  }
  __syncthreads();
  // Each part: a warp merges its channels, which have as many pixels each.
  int lane = threadIdx.x % 32;
  for (int part = threadIdx.x / 32; part < a.tile; part += GROUP_NORM_THREADS / 32) {
    float sum = 0.f, m2 = 0.f;
    int begin = part * a.width, end = begin + a.width;
    for (int c = begin + lane; c < end; c += 32) sum += means[c % V][c / V];
    float mean = sum_over(sum, 32) / a.width;
    for (int c = begin + lane; c < end; c += 32) {
      float distance = means[c % V][c / V] - mean;
      m2 += squares[c % V][c / V] + pixels * distance * distance;
    }
    m2 = sum_over(m2, 32);
    int64 number = ((int64)blockIdx.z * gridDim.y + blockIdx.y) * a.tile + part;
    if (lane == 0) store(a.statistics + number * a.slabs + blockIdx.x, float2{mean, m2});
  }
}

// Leaves mean and 1 / deviation of each part of the block's tile in shared memory.
__device__ __forceinline__ void merge_slabs(const GroupNorm& a, float* means, float* scales) {
  int lane = threadIdx.x % 32, entries = a.slabs * a.parts;
  float all = (float)a.pixels * a.width * a.parts;
  float full = (float)a.slab * a.width;
  float last = (float)(a.pixels - (int64)(a.slabs - 1) * a.slab) * a.width;
  for (int part = threadIdx.x / 32; part < a.tile; part += GROUP_NORM_THREADS / 32) {
    int group = (blockIdx.y * a.tile + part) / a.parts;
    int64 groups = gridDim.y * a.tile / a.parts;
    const float2* from = a.statistics + (blockIdx.z * groups + group) * entries;
    float sum = 0.f, m2 = 0.f;
    for (int e = lane; e < entries; e += 32) {
      bool ends = (a.parts == 1 ? e : e % a.slabs) == a.slabs - 1;
      sum += load(from + e).x * (ends ? last : full);
    }
    float mean = sum_over(sum, 32) / all;
    for (int e = lane; e < entries; e += 32) {
      bool ends = (a.parts == 1 ? e : e % a.slabs) == a.slabs - 1;
      float2 entry = load(from + e);
      float distance = entry.x - mean;
      m2 += entry.y + (ends ? last : full) * distance * distance;
    }
    m2 = sum_over(m2, 32);
    if (lane == 0) means[part] = mean, scales[part] = rsqrtf(m2 / all + a.eps);
  }
}

template <int V>
__device__ __forceinline__ void apply(const GroupNorm& a) {
  __shared__ float means[GROUP_NORM_THREADS], scales[GROUP_NORM_THREADS];
  Place<V> at(a, a.written);
  int left = at.count - at.row;
  Pack<V> packs[4], weights, biases;
  float middle[V], scale[V], shift[V];
  if (at.works()) {
    at.read(packs, left);
    weights = load_pack<V>(a.weight + at.channel);
    biases = load_pack<V>(a.bias + at.channel);
    read_offset(a, at, middle);
  }
  merge_slabs(a, means, scales);
  __syncthreads();
  if (!at.works()) return;
  int in_tile = threadIdx.x % at.lanes * V, part = in_tile / a.width, next = (part + 1) * a.width;
#pragma unroll
  for (int i = 0; i < V; i++) {
    if (in_tile + i == next) part++, next += a.width;
    scale[i] = scales[part] * widen(weights.each[i]);
    middle[i] = means[part] - middle[i];
    shift[i] = widen(biases.each[i]);
    if (ELEMENT) shift[i] -= middle[i] * scale[i];
  }
  int channels = a.channels + a.skip_channels;
  Element* to = a.y + (blockIdx.z * (int64)a.pixels + at.first + at.row) * channels + at.channel;
  int64 step = (int64)at.rows * channels;
  while (left > 0) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (j * at.rows >= left) break;
#pragma unroll
      for (int i = 0; i < V; i++) {
        float x = widen(packs[j].each[i]);
        float y = (ELEMENT ? x : x - middle[i]) * scale[i] + shift[i];
        packs[j].each[i] = narrow(a.silu ? silu(y) : y);
      }
      store_pack<V>(to + j * step, packs[j]);
    }
    left -= 4 * at.rows, at.from += 4 * at.step, to += 4 * step;
    at.read(packs, left);
  }
}

// Registers are limited so that a multiprocessor has room for two blocks.
#define GROUP_NORM extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS, 2)
GROUP_NORM group_norm_statistics_wide(const GroupNorm a) { statistics<WIDE>(a); }
GROUP_NORM group_norm_statistics_narrow(const GroupNorm a) { statistics<1>(a); }
GROUP_NORM group_norm_apply_wide(const GroupNorm a) { apply<WIDE>(a); }
GROUP_NORM group_norm_apply_narrow(const GroupNorm a) { apply<1>(a); }
