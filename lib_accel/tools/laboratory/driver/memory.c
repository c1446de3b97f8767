// Memory: of the card and pinned, both mapped only where it is touched. The card has PRETEND_BYTES,
// so that a full one can be tried. Beyond that it gives none; with PRETEND_PAGES it gives memory of
// the host, as the driver for Windows does, and says nothing.
#include "pretend.h"
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define MOST (1 << 16)
static struct range ranges[MOST];
static int count;
static size_t used, peak;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *take(size_t bytes, int host) {
  bytes = (bytes + 4095) & ~4095ul;
  if (!bytes)
    bytes = 4096;
  void *start = NULL;
  pthread_mutex_lock(&lock);
  if (count < MOST && (host || pages() || used + bytes <= card_bytes())) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (start == MAP_FAILED)
      start = NULL;
  }
  if (start) {
    ranges[count++] = (struct range){start, bytes, host};
    if (!host)
      used += bytes;
    if (used > peak)
      peak = used;
  }
  pthread_mutex_unlock(&lock);
  return start;
}

static void give_back(void *start) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < count; i++)
    if (ranges[i].start == start) {
      munmap(start, ranges[i].bytes);
      if (!ranges[i].host)
        used -= ranges[i].bytes;
      ranges[i] = ranges[--count];
      break;
    }
  pthread_mutex_unlock(&lock);
}

int find_range(const void *address, struct range *found) {
  const char *at = address;
  int is_found = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < count && !is_found; i++)
    if (at >= ranges[i].start && at < ranges[i].start + ranges[i].bytes) {
      *found = ranges[i];
      is_found = 1;
    }
  pthread_mutex_unlock(&lock);
  return is_found;
}

// The most bytes of the card that were taken at once since the last question.
API size_t pretend_peak(void) {
  pthread_mutex_lock(&lock);
  size_t most = peak;
  peak = used;
  pthread_mutex_unlock(&lock);
  return most;
}

API cudaError_t cudaMalloc(void **start, size_t bytes) {
  *start = take(bytes, 0);
  return *start ? cudaSuccess : cudaErrorMemoryAllocation;
}
API cudaError_t cudaMallocAsync(void **start, size_t bytes, cudaStream_t stream) {
  return cudaMalloc(start, bytes);
}
API cudaError_t cudaFree(void *start) { return give_back(start), cudaSuccess; }
API cudaError_t cudaFreeAsync(void *start, cudaStream_t s) { return give_back(start), cudaSuccess; }
API cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) {
  *start = take(bytes, 1);
  return *start ? cudaSuccess : cudaErrorMemoryAllocation;
}
API cudaError_t cudaFreeHost(void *start) { return give_back(start), cudaSuccess; }
API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = card_bytes();
  *free_bytes = used < *total ? *total - used : 0;
  return cudaSuccess;
}
API cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
  return cudaMalloc(address, 4096);
}

API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  memmove(to, from, bytes);
  say("copy bytes=%zu kind=%d", bytes, kind);
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                cudaStream_t stream) {
  return cudaMemcpy(to, from, bytes, kind);
}
API cudaError_t cudaMemset(void *start, int value, size_t bytes) {
  memset(start, value, bytes);
  say("set bytes=%zu", bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset(start, value, bytes);
}

API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
  struct range range;
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeUnregistered;
  if (find_range(address, &range)) {
    found->type = range.host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    found->devicePointer = (void *)address;
    found->hostPointer = range.host ? (void *)address : NULL;
  }
  return cudaSuccess;
}

API CUresult cuMemAlloc(CUdeviceptr *start, size_t bytes) {
  *start = (CUdeviceptr)take(bytes, 0);
  return *start ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuMemFree(CUdeviceptr start) { return give_back((void *)start), CUDA_SUCCESS; }
API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute,
                                   CUdeviceptr address) {
  struct range range;
  if (!find_range((void *)address, &range))
    return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    *(CUdeviceptr *)value = address;
  else if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
    *(int *)value = range.host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
  else
    *(int *)value = 0;
  return CUDA_SUCCESS;
}
