// Matrix products and convolutions: logged with their sizes, not computed.
#include "pretend.h"
#include <dlfcn.h>

API int cublasCreate_v2(void **handle) { return *handle = new_handle(), 0; }
API int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }
API int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0; }
API int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                     const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                     const void *beta, void *c, int c_type, int ldc, int compute, int algorithm) {
  say("product m=%d n=%d k=%d type=%d compute=%d", m, n, k, a_type, compute);
  return 0;
}
API int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k) {
  say("product m=%d n=%d k=%d batched", m, n, k);
  return 0;
}
API int cublasSgemm_v2(void *handle, int ta, int tb, int m, int n, int k) {
  say("product m=%d n=%d k=%d float32", m, n, k);
  return 0;
}
API int cublasLtMatmulDescCreate(void **made, int compute, int scale) {
  return *made = new_handle(), 0;
}
API int cublasLtMatmulPreferenceCreate(void **made) { return *made = new_handle(), 0; }
API int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns,
                                   int64_t stride) {
  return *made = new_handle(), 0;
}
API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c,
                                       void *d, void *preference, int wanted, void *results,
                                       int *found) {
  return *found = 1, 0;
}
API int cublasLtMatmul(void) { return say("product lt"), 0; }

// AOTInductor's convolution. cuDNN itself cannot be pretended: its libraries ask too much of a
// card.
typedef void *Tensor;

static void *torchs(const char *name) {
  static void *library;
  if (!library)
    library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_NOW);
  return dlsym(library, name);
}

API int aoti_torch_cuda_convolution(Tensor input, Tensor weight, Tensor *bias,
                                    const int64_t *stride, int64_t strides, const int64_t *padding,
                                    int64_t paddings, const int64_t *dilation, int64_t dilations,
                                    int32_t transposed, const int64_t *extra, int64_t extras,
                                    int64_t groups, Tensor *output) {
  int (*sizes_of)(Tensor, int64_t **) = torchs("aoti_torch_get_sizes");
  int (*strides_of)(Tensor, int64_t **) = torchs("aoti_torch_get_strides");
  int (*dtype_of)(Tensor, int32_t *) = torchs("aoti_torch_get_dtype");
  int (*type_of)(Tensor, int32_t *) = torchs("aoti_torch_get_device_type");
  int (*index_of)(Tensor, int32_t *) = torchs("aoti_torch_get_device_index");
  int (*empty)(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, Tensor *) =
      torchs("aoti_torch_empty_strided");
  int64_t *in, *kernel, *in_strides;
  int32_t dtype, type, index;
  sizes_of(input, &in), sizes_of(weight, &kernel), strides_of(input, &in_strides);
  dtype_of(input, &dtype), type_of(input, &type), index_of(input, &index);
  int64_t height = (in[2] + 2 * padding[0] - kernel[2]) / stride[0] + 1;
  int64_t width = (in[3] + 2 * padding[1] - kernel[3]) / stride[1] + 1;
  int64_t channels = kernel[0];
  int64_t size[4] = {in[0], channels, height, width};
  int64_t channels_last[4] = {channels * height * width, 1, channels * width, channels};
  say("convolution in=%ld,%ld,%ld,%ld out=%ld kernel=%ld channels_last=%d bias=%d", in[0], in[1],
      in[2], in[3], channels, kernel[2], in_strides[1] == 1, bias != NULL);
  return empty(4, size, channels_last, dtype, type, index, output);
}
