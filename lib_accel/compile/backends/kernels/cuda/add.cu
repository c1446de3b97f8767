// y = x + offset + residual for every pixel, in its own size or resized to the nearest neighbour.
//
// Resized, a pixel (i, j) of y is the pixel (floor(i * h / H), floor(j * w / W)) of the sum, where
// x has h * w pixels and y H * W; as in torch, the factors are rounded to float32.
// A thread takes WIDE channels and goes down four pixels, so that it reads the offset once.

struct Add {
  const Element* x;         // [images, height * width, channels]
  const Element* residual;  // like x, or null
  const Element* offset;    // [images or 1, channels], or null
  const Element* shared;    // [channels], added to the offset, or null
  Element* y;               // [images, pixels, channels]
  int64 pixels;             // of an image of y
  int channels;
  int offset_stride;        // channels, or 0 where all images share the offset
  int lanes;                // threads beside each other; blockDim.x / lanes stand below each other
  int height, width;        // of x; not used where y has its size
  int to_height, to_width;  // of y
};

__device__ __forceinline__ int nearest(int to, int size, int to_size) {
  return min((int)floorf(to * ((float)size / (float)to_size)), size - 1);
}

// Returns the pixel of x for a pixel of y; an image has fewer than 2^31.
__device__ __forceinline__ int nearest_pixel(const Add& a, int pixel) {
  return nearest(pixel / a.to_width, a.height, a.to_height) * a.width +
         nearest(pixel % a.to_width, a.width, a.to_width);
}

template <int V, bool RESIZED>
__device__ __forceinline__ void add(const Add& a) {
  int channel = (blockIdx.y * a.lanes + threadIdx.x % a.lanes) * V;
  int below = blockDim.x / a.lanes;
  int64 first = (int64)blockIdx.x * below * 4 + threadIdx.x / a.lanes;
  if (channel >= a.channels) return;
  float offset[V] = {};
  if (a.offset) {
    Pack<V> pack = load_pack<V>(a.offset + (int64)blockIdx.z * a.offset_stride + channel);
#pragma unroll
    for (int i = 0; i < V; i++) offset[i] = widen(pack.each[i]);
  }
  if (a.shared) {
    Pack<V> pack = load_pack<V>(a.shared + channel);
#pragma unroll
    for (int i = 0; i < V; i++) offset[i] += widen(pack.each[i]);
  }
  int64 read = RESIZED ? (int64)a.height * a.width : a.pixels;
  Pack<V> packs[4], others[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int64 pixel = first + j * below;
    if (pixel >= a.pixels) break;
    int64 from = blockIdx.z * read + (RESIZED ? nearest_pixel(a, (int)pixel) : pixel);
    packs[j] = load_pack<V>(a.x + from * a.channels + channel);
    if (a.residual) others[j] = load_pack<V>(a.residual + from * a.channels + channel);
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int64 pixel = first + j * below;
    if (pixel >= a.pixels) break;
#pragma unroll
    for (int i = 0; i < V; i++) {
      float sum = widen(packs[j].each[i]) + offset[i];
      packs[j].each[i] = narrow(a.residual ? sum + widen(others[j].each[i]) : sum);
    }
    store_pack<V>(a.y + (blockIdx.z * a.pixels + pixel) * a.channels + channel, packs[j]);
  }
}

#define ADD extern "C" __global__ void __launch_bounds__(256)
ADD add_wide(const Add a) { add<WIDE, false>(a); }
ADD add_narrow(const Add a) { add<1, false>(a); }
ADD upsample_wide(const Add a) { add<WIDE, true>(a); }
ADD upsample_narrow(const Add a) { add<1, true>(a); }
