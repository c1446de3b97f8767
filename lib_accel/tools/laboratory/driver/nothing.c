// Calls of the driver that succeed and do nothing. Those of the runtime are made by laboratory.py.
#define SUCCEED(name)                                                                              \
  __attribute__((visibility("default"))) int name(void) { return 0; }

SUCCEED(cuInit)
SUCCEED(cuCtxSetCurrent)
SUCCEED(cuCtxSetLimit)
SUCCEED(cuCtxSynchronize)
SUCCEED(cuModuleUnload)
SUCCEED(cuFuncSetCacheConfig)
SUCCEED(cuTensorMapEncodeTiled)
