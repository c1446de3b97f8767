// The card: its properties, its log, and the calls that ask about it.
#include "pretend.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}

int card(void) { return (int)setting("PRETEND_CARD", 86); }
size_t card_bytes(void) { return (size_t)setting("PRETEND_BYTES", 24L << 30); }
int pages(void) { return (int)setting("PRETEND_PAGES", 0); }

static FILE *log_file(void) {
  static FILE *file;
  static int tried;
  if (!tried) {
    tried = 1;
    const char *path = getenv("PRETEND_LOG");
    if (path && *path)
      file = fopen(path, "a");
  }
  return file;
}

int logging(void) { return log_file() != NULL; }

void say(const char *format, ...) {
  FILE *file = log_file();
  if (!file)
    return;
  va_list values;
  va_start(values, format);
  flockfile(file);
  vfprintf(file, format, values);
  fputc('\n', file);
  fflush(file);
  funlockfile(file);
  va_end(values);
}

void *new_handle(void) {
  static uintptr_t last = 0x1000;
  return (void *)__sync_add_and_fetch(&last, 0x10);
}

// Multiprocessors, and shared memory and threads of each, as NVIDIA's data sheets have them.
struct model {
  int card, multiprocessors, shared, shared_optin, threads;
};
static const struct model models[] = {
    {75, 68, 65536, 65536, 1024},     {80, 108, 167936, 166912, 2048},
    {86, 82, 102400, 101376, 1536},   {89, 128, 102400, 101376, 1536},
    {90, 132, 233472, 232448, 2048},  {100, 148, 233472, 232448, 2048},
    {120, 170, 102400, 101376, 1536},
};

static const struct model *this_model(void) {
  for (size_t i = 0; i < sizeof models / sizeof *models; i++)
    if (models[i].card == card())
      return &models[i];
  return &models[2];
}

int card_attribute(int attribute) {
  const struct model *m = this_model();
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
  case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
  case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
  case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
  case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
  case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
  case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
  case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
  case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1695000;
  case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return m->multiprocessors;
  case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
  case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
  case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
  case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 9501000;
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 384;
  case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 6 << 20;
  case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return m->threads;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card() / 10;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card() % 10;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return m->shared;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return m->shared_optin;
  case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 16;
  }
  return 0;
}

#define ATTRIBUTE(name) card_attribute(CU_DEVICE_ATTRIBUTE_##name)

static cudaError_t properties(struct cudaDeviceProp *p) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "Pretend sm_%d", card());
  p->totalGlobalMem = card_bytes();
  p->major = card() / 10;
  p->minor = card() % 10;
  p->multiProcessorCount = ATTRIBUTE(MULTIPROCESSOR_COUNT);
  p->maxThreadsPerMultiProcessor = ATTRIBUTE(MAX_THREADS_PER_MULTIPROCESSOR);
  p->maxBlocksPerMultiProcessor = ATTRIBUTE(MAX_BLOCKS_PER_MULTIPROCESSOR);
  p->sharedMemPerMultiprocessor = ATTRIBUTE(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  p->sharedMemPerBlockOptin = ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  p->sharedMemPerBlock = ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK);
  p->regsPerMultiprocessor = p->regsPerBlock = ATTRIBUTE(MAX_REGISTERS_PER_BLOCK);
  p->warpSize = ATTRIBUTE(WARP_SIZE);
  p->memPitch = ATTRIBUTE(MAX_PITCH);
  p->maxThreadsPerBlock = ATTRIBUTE(MAX_THREADS_PER_BLOCK);
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = ATTRIBUTE(MAX_BLOCK_DIM_X);
  p->maxThreadsDim[2] = ATTRIBUTE(MAX_BLOCK_DIM_Z);
  p->maxGridSize[0] = ATTRIBUTE(MAX_GRID_DIM_X);
  p->maxGridSize[1] = p->maxGridSize[2] = ATTRIBUTE(MAX_GRID_DIM_Y);
  p->totalConstMem = ATTRIBUTE(TOTAL_CONSTANT_MEMORY);
  p->textureAlignment = ATTRIBUTE(TEXTURE_ALIGNMENT);
  p->memoryBusWidth = ATTRIBUTE(GLOBAL_MEMORY_BUS_WIDTH);
  p->l2CacheSize = ATTRIBUTE(L2_CACHE_SIZE);
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = p->cooperativeLaunch = 1;
  return cudaSuccess;
}
// CUDA 12 and 13 name the same call differently, as their structs differ.
#if CUDA_VERSION < 13000
API cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return properties(p); }
#else
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) { return properties(p); }
#endif

API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  *value = card_attribute(attribute);
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
API cudaError_t cudaSetDevice(int device) { return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDA_VERSION, cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { return *can = 0, cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device) {
  snprintf(text, bytes, "0000:01:00.0");
  return cudaSuccess;
}
API const char *cudaGetErrorString(cudaError_t error) { return "an error of the pretend card"; }
API const char *cudaGetErrorName(cudaError_t error) { return "pretendError"; }

API CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = 0, CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
API CUresult cuDeviceGetName(char *text, int bytes, CUdevice device) {
  snprintf(text, bytes, "Pretend sm_%d", card());
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  *value = card_attribute(attribute);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
  *bytes = card_bytes();
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "an error of the pretend card";
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = "PRETEND_ERROR";
  return CUDA_SUCCESS;
}

static int context;
API CUresult cuDevicePrimaryCtxRetain(CUcontext *found, CUdevice device) {
  *found = (CUcontext)&context;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0, *active = 1;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext *found) {
  *found = (CUcontext)&context;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return *value = 1 << 20, CUDA_SUCCESS; }
