// Streams, events, graphs, and torch's own kernels, which are launched by the runtime.
#include "pretend.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

API cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = new_handle(), cudaSuccess; }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
  return cudaStreamCreate(s);
}
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) {
  return *priority = 0, cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = new_handle(), cudaSuccess; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { return cudaEventCreate(e); }
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begun, cudaEvent_t ended) {
  *ms = 0.0001f; // less than any launch takes: every call is bound by its launches
  return cudaSuccess;
}

// One stream records at a time. PRETEND_FAIL=capture lets the next recording be broken off.
static cudaStream_t recording;
static unsigned long long recordings = 1;

API cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
  recording = s;
  recordings++;
  say("capture begin mode=%d", mode);
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
  const char *fail = getenv("PRETEND_FAIL");
  recording = NULL;
  if (fail && !strcmp(fail, "capture")) {
    unsetenv("PRETEND_FAIL");
    say("capture broken");
    *graph = NULL;
    return cudaErrorStreamCaptureInvalidated;
  }
  say("capture end");
  *graph = new_handle();
  return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = s && s == recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
static cudaError_t recorded(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                            unsigned long long *id, size_t *count) {
  cudaStreamIsCapturing(s, status);
  if (id)
    *id = recordings;
  if (count)
    *count = 0;
  return cudaSuccess;
}
#if CUDA_VERSION < 13000
API cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *id, cudaGraph_t *graph,
                                            const cudaGraphNode_t **nodes, size_t *count) {
  return recorded(s, status, id, count);
}
#else
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                         unsigned long long *id, cudaGraph_t *graph,
                                         const cudaGraphNode_t **nodes,
                                         const cudaGraphEdgeData **edges, size_t *count) {
  return recorded(s, status, id, count);
}
#endif
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  static __thread enum cudaStreamCaptureMode now;
  enum cudaStreamCaptureMode before = now;
  now = *mode;
  *mode = before;
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph,
                                     unsigned long long flags) {
  return *run = new_handle(), cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *run, cudaGraph_t graph,
                                              unsigned long long flags) {
  return *run = new_handle(), cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  return *count = 1, cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  say("graph stream=%p", stream);
  return cudaSuccess;
}

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 64;
  found->binaryVersion = found->ptxVersion = card();
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f,
                                                                       int threads, size_t shared,
                                                                       unsigned flags) {
  return *blocks = 2, cudaSuccess;
}

// The names of torch's own kernels, registered when its libraries are loaded.
struct kernel {
  const void *function;
  const char *name;
};
static struct kernel *kernels;
static int known, room;

API void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[4];
  return handle;
}
API void __cudaRegisterFatBinaryEnd(void **handle) {}
API void __cudaUnregisterFatBinary(void **handle) {}
API char __cudaInitModule(void **handle) { return 1; }
API void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external,
                           size_t bytes, int constant, int global) {}
API void __cudaRegisterFunction(void **handle, const char *function, char *device, const char *name,
                                int limit, void *a, void *b, void *c, void *d, int *e) {
  if (known == room) {
    room = room ? 2 * room : 1 << 16;
    kernels = realloc(kernels, room * sizeof *kernels);
  }
  kernels[known++] = (struct kernel){function, name};
}

static const char *name_of(const void *function) {
  for (int i = known; i--;)
    if (kernels[i].function == function)
      return kernels[i].name;
  return "?";
}

struct call {
  dim3 grid, block;
  size_t shared;
  void *stream;
};
static __thread struct call next_call;

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  next_call = (struct call){grid, block, shared, stream};
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = next_call.grid;
  *block = next_call.block;
  *shared = next_call.shared;
  *(void **)stream = next_call.stream;
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                 size_t shared, cudaStream_t stream) {
  if (logging())
    say("torch %s grid=%u,%u,%u block=%u,%u,%u shared=%zu stream=%p", name_of(function), grid.x,
        grid.y, grid.z, block.x, block.y, block.z, shared, stream);
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *function, void **a) {
  return cudaLaunchKernel(function, c->gridDim, c->blockDim, a, c->dynamicSmemBytes, c->stream);
}

static cudaError_t succeed(void) { return cudaSuccess; }

API cudaError_t cudaGetDriverEntryPoint(const char *name, void **found, unsigned long long flags,
                                        enum cudaDriverEntryPointQueryResult *result) {
  char newer[256];
  snprintf(newer, sizeof newer, "%s_v2", name);
  *found = dlsym(RTLD_DEFAULT, name);
  if (!*found)
    *found = dlsym(RTLD_DEFAULT, newer);
  if (!*found) {
    *found = (void *)succeed;
    say("unknown %s", name);
  }
  if (result)
    *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version,
                                                 unsigned long long flags,
                                                 enum cudaDriverEntryPointQueryResult *result) {
  return cudaGetDriverEntryPoint(name, found, flags, result);
}
