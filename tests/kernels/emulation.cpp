// Runs CUDA kernels on a CPU, one block after another, and watches what they read and write.
//
// A thread of a block is a fiber with a stack of its own. It runs until it waits for others, at a
// barrier of the block or in an exchange between the threads of a warp, so the order is always the
// same. Where no thread can go on, some thread did not come to where the others wait: an error.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct Index {
  unsigned x, y, z;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

static char error[256];
static void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  if (!*error) vsnprintf(error, sizeof error, format, values);
  va_end(values);
}

// The tensors that a kernel was given, and how often each of their bytes was written.
struct Tensor {
  char* start;
  int64_t bytes;
  unsigned char* written;
};
static const Tensor* tensors;
static int tensor_count;

static const Tensor* find(const void* address, size_t bytes, const char* what) {
  const char* at = (const char*)address;
  if ((size_t)at % bytes) fail("%s of %zu bytes at an address that is no multiple", what, bytes);
  for (int i = 0; i < tensor_count; i++)
    if (at >= tensors[i].start && at + bytes <= tensors[i].start + tensors[i].bytes)
      return &tensors[i];
  fail("%s of %zu bytes outside of all tensors, by block %u,%u,%u thread %u", what, bytes,
       blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  return nullptr;
}
template <class T>
static T load(const T* from) {
  T value = {};
  if (find(from, sizeof(T), "a read")) memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
static void store(T* to, T value) {
  if (const Tensor* tensor = find(to, sizeof(T), "a write")) {
    memcpy(to, &value, sizeof(T));
    for (size_t i = 0; i < sizeof(T); i++) tensor->written[(char*)to - tensor->start + i]++;
  }
}

constexpr int MOST_THREADS = 1024, STACK = 1 << 16;
static char stacks[MOST_THREADS][STACK];
static ucontext_t scheduler_context, start_context;
static jmp_buf scheduler, fibers[MOST_THREADS];
static bool started[MOST_THREADS], ended[MOST_THREADS];
static bool progress;
static void (*kernel)(const void*);
static const void* arguments;

static void begin() {
  kernel(arguments);
  ended[threadIdx.x] = progress = true;
  _longjmp(scheduler, 1);
}
static void resume(unsigned thread) {
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (started[thread]) _longjmp(fibers[thread], 1);
  started[thread] = progress = true;
  getcontext(&start_context);
  start_context.uc_stack = {stacks[thread], 0, STACK};
  makecontext(&start_context, begin, 0);
  setcontext(&start_context);
}
static void yield() {
  if (!_setjmp(fibers[threadIdx.x])) _longjmp(scheduler, 1);
}

struct Barrier {
  unsigned waiting, generation;
  void wait(unsigned all) {
    unsigned mine = generation;
    progress = true;
    if (++waiting == all) waiting = 0, generation++;
    while (mine == generation) yield();
  }
};
static Barrier block_barrier, warp_barriers[MOST_THREADS / 32];
static float exchanged[MOST_THREADS];

static void __syncthreads() { block_barrier.wait(blockDim.x); }
static float __shfl_xor_sync(unsigned, float value, int step) {
  unsigned thread = threadIdx.x, first = thread & ~31u;
  unsigned size = blockDim.x - first < 32 ? blockDim.x - first : 32;
  exchanged[thread] = value;
  warp_barriers[thread / 32].wait(size);
  float theirs = exchanged[thread ^ step];
  warp_barriers[thread / 32].wait(size);
  return theirs;
}

static void run_block() {
  memset(started, 0, sizeof started);
  memset(ended, 0, sizeof ended);
  memset(&block_barrier, 0, sizeof block_barrier);
  memset(warp_barriers, 0, sizeof warp_barriers);
  for (unsigned left = blockDim.x; left && !*error;) {
    progress = false;
    left = 0;
    for (unsigned i = 0; i < blockDim.x; i++)
      if (!ended[i]) resume(i), left += !ended[i];
    if (!progress) fail("block %u,%u,%u: threads wait for others that have gone another way",
                        blockIdx.x, blockIdx.y, blockIdx.z);
  }
}
static void run_grid() {
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
        if (!*error) run_block();
}

template <class T>
static T min(T a, T b) {
  return b < a ? b : a;
}
template <class To, class From>
static To bits_of(From value) {
  To to;
  memcpy(&to, &value, sizeof to);
  return to;
}
static float __uint_as_float(unsigned bits) { return bits_of<float>(bits); }
static unsigned __float_as_uint(float value) { return bits_of<unsigned>(value); }
static float from_half(unsigned short bits) { return bits_of<_Float16>(bits); }
static unsigned short to_half(float value) { return bits_of<unsigned short>((_Float16)value); }
static float rsqrtf(float x) { return 1.f / sqrtf(x); }
#define __expf expf  // the C library has an __expf of its own
static float __fdividef(float x, float y) { return fabsf(y) > 8.5e37f && fabsf(y) < INFINITY ? 0 : x / y; }
static float cospif(float x) { return (float)cos(M_PI * x); }
static float sinpif(float x) { return (float)sin(M_PI * x); }

#pragma GCC diagnostic ignored "-Wunknown-pragmas"
