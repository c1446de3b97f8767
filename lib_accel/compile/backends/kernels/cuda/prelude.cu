// What every kernel needs: numbers of 16 or 32 bits in memory, float32 in registers.
//
// The compiler is given ELEMENT: 0 for float32, 1 for float16, 2 for bfloat16. There are no headers:
// NVRTC comes without them. All reads and writes of tensors go through load and store, which the
// tests replace to see that every address is inside a tensor.

typedef long long int64;

#if ELEMENT == 0
typedef float Element;
#else
typedef unsigned short Element;  // the bits of a float16 or bfloat16
#endif

constexpr int WIDE = 16 / sizeof(Element);  // elements that one thread reads or writes at once

// V elements in a row of memory, as they lie there. V is WIDE, and then aligned, or 1.
template <int V>
union Pack {
  uint4 all;
  Element each[V];
};
template <>
union Pack<1> {
  Element all;
  Element each[1];
};

#ifndef EMULATED  // the tests have their own of these, which run on a CPU

__device__ __forceinline__ float from_half(Element bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
  return value;
}
__device__ __forceinline__ Element to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// What is loaded is never written by the same kernel, so the read-only cache may serve it.
template <class T>
__device__ __forceinline__ T load(const T* from) {
  return __ldg(from);
}
template <class T>
__device__ __forceinline__ void store(T* to, T value) {
  *to = value;
}

#endif

__device__ __forceinline__ float widen(Element bits) {
#if ELEMENT == 0
  return bits;
#elif ELEMENT == 1
  return from_half(bits);
#else
  return __uint_as_float((unsigned)bits << 16);
#endif
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ Element narrow(float value) {
#if ELEMENT == 0
  return value;
#elif ELEMENT == 1
  return to_half(value);
#elif __CUDA_ARCH__ >= 800
  Element bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  unsigned bits = __float_as_uint(value);
  return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

template <int V>
__device__ __forceinline__ Pack<V> load_pack(const Element* from) {
  Pack<V> pack;
  pack.all = load((const decltype(pack.all)*)from);
  return pack;
}
template <int V>
__device__ __forceinline__ void store_pack(Element* to, Pack<V> pack) {
  store((decltype(pack.all)*)to, pack.all);
}

// Adds `value` over each `lanes` neighbouring threads (a power of two, at most 32).
__device__ __forceinline__ float sum_over(float value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// x * sigmoid(x). Half precision does not show the error of the fast exponential.
__device__ __forceinline__ float silu(float x) {
#if ELEMENT == 0
  return x / (1.f + expf(-x));
#else
  return __fdividef(x, 1.f + __expf(-x));
#endif
}
