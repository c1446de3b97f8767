// From torch 2.10's AOTInductor for sm_86, without what the count does not read: the kernels' own
// code, class definitions, and checks of the inputs. Made from the unit of SD1.5 that the test names.

static inline void call_triton_red_fused_clone_native_group_norm_0(
    const in_ptr0_type_& in_ptr0,
    const out_ptr0_type_& out_ptr0,
    const out_ptr1_type_& out_ptr1,
    int64_t ks0,
    int64_t ks1,
    int64_t xnumel,
    int64_t r0_numel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_clone_convolution_native_group_norm_silu_1(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const in_ptr4_type_& in_ptr4,
    const out_ptr1_type_& out_ptr1,
    int64_t ks0,
    int64_t ks1,
    int64_t ks2,
    int64_t ynumel,
    int64_t xnumel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_convolution_silu_2(
    const in_ptr0_type_& in_ptr0,
    const out_ptr0_type_& out_ptr0,
    int64_t ks0,
    int64_t ks1,
    int64_t ynumel,
    int64_t xnumel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_silu_3(
    const in_ptr0_type_& in_ptr0,
    const out_ptr0_type_& out_ptr0,
    int64_t xnumel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_red_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_4(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const out_ptr0_type_& out_ptr0,
    const out_ptr1_type_& out_ptr1,
    int64_t ks0,
    int64_t ks1,
    int64_t xnumel,
    int64_t r0_numel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_5(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const in_ptr4_type_& in_ptr4,
    const in_ptr5_type_& in_ptr5,
    const in_ptr6_type_& in_ptr6,
    const in_ptr7_type_& in_ptr7,
    const out_ptr1_type_& out_ptr1,
    int64_t ks0,
    int64_t ks1,
    int64_t ks2,
    int64_t ynumel,
    int64_t xnumel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_add_convolution_silu_6(
    const in_out_ptr0_type_& in_out_ptr0,
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    int64_t xnumel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

void AOTInductorModel::run_impl(
    AtenTensorHandle*
        input_handles, // array of input AtenTensorHandle; handles
                        // are stolen; the array itself is borrowed
    AtenTensorHandle*
        output_handles, // array for writing output AtenTensorHandle; handles
                        // will be stolen by the caller; the array itself is
                        // borrowed
    DeviceStreamType stream,
    AOTIProxyExecutorHandle proxy_executor
) {
    __check_inputs_outputs(input_handles, output_handles);

    auto inputs = steal_from_raw_handles_to_raii_handles(input_handles, 12);
    auto arg0_1 = std::move(inputs[0]);
    auto arg1_1 = std::move(inputs[1]);
    auto arg2_1 = std::move(inputs[2]);
    auto arg3_1 = std::move(inputs[3]);
    auto arg4_1 = std::move(inputs[4]);
    auto arg5_1 = std::move(inputs[5]);
    auto arg6_1 = std::move(inputs[6]);
    auto arg7_1 = std::move(inputs[7]);
    auto arg8_1 = std::move(inputs[8]);
    auto arg9_1 = std::move(inputs[9]);
    auto arg10_1 = std::move(inputs[10]);
    auto arg11_1 = std::move(inputs[11]);

    auto arg0_1_size = arg0_1.sizes();
    int64_t s39 = arg0_1_size[0];
    int64_t s89 = arg0_1_size[2];
    int64_t s82 = arg0_1_size[3];
    inputs.clear();
    [[maybe_unused]] auto& kernels = static_cast<AOTInductorModelKernels&>(*this->kernels_.get());

    AOTICudaStreamGuard stream_guard(stream, this->device_idx_);
    const int64_t int_array_0[] = {s39, 32L, 1L, 1L};
    const int64_t int_array_1[] = {32L, 1L, 32L*s39, 32L*s39};
    AtenTensorHandle buf0_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_0, int_array_1, cached_torch_dtype_float32, cached_torch_device_type_cuda, this->device_idx_, &buf0_handle));
    RAIIAtenTensorHandle buf0(buf0_handle);
    AtenTensorHandle buf1_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_0, int_array_1, cached_torch_dtype_float32, cached_torch_device_type_cuda, this->device_idx_, &buf1_handle));
    RAIIAtenTensorHandle buf1(buf1_handle);
    // Topologically Sorted Source Nodes: [group_norm], Original ATen: [aten.clone, aten.native_group_norm]
    int64_t triton_red_fused_clone_native_group_norm_0_xnumel = 32L*s39;
    int64_t triton_red_fused_clone_native_group_norm_0_r0_numel = 10L*s82*s89;
    call_triton_red_fused_clone_native_group_norm_0(arg0_1, buf0, buf1, s82, s89, triton_red_fused_clone_native_group_norm_0_xnumel, triton_red_fused_clone_native_group_norm_0_r0_numel, this->device_idx_, stream, kernels, this->cubin_dir_);
    int64_t ps0 = s82*s89;
    const int64_t int_array_2[] = {s39, 320L, s89, s82};
    const int64_t int_array_3[] = {320L*s82*s89, s82*s89, s82, 1L};
    AtenTensorHandle buf4_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_2, int_array_3, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf4_handle));
    RAIIAtenTensorHandle buf4(buf4_handle);
    // Topologically Sorted Source Nodes: [group_norm, silu, conv2d], Original ATen: [aten.clone, aten.native_group_norm, aten.silu, aten.convolution]
    int64_t triton_poi_fused_clone_convolution_native_group_norm_silu_1_ynumel = s39*s82*s89;
    call_triton_poi_fused_clone_convolution_native_group_norm_silu_1(arg0_1, buf0, buf1, arg2_1, arg3_1, buf4, ps0, s82, s89, triton_poi_fused_clone_convolution_native_group_norm_silu_1_ynumel, 320L, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg2_1.reset();
    arg3_1.reset();
    const int64_t int_array_4[] = {s39, 320L, s89, s82};
    const int64_t int_array_5[] = {320L*s82*s89, 1L, 320L*s82, 320L};
    AtenTensorHandle buf5_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_4, int_array_5, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf5_handle));
    RAIIAtenTensorHandle buf5(buf5_handle);
    // Topologically Sorted Source Nodes: [silu, conv2d], Original ATen: [aten.silu, aten.convolution]
    int64_t triton_poi_fused_convolution_silu_2_ynumel = 320L*s39;
    int64_t triton_poi_fused_convolution_silu_2_xnumel = s82*s89;
    call_triton_poi_fused_convolution_silu_2(buf4, buf5, s82, s89, triton_poi_fused_convolution_silu_2_ynumel, triton_poi_fused_convolution_silu_2_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    buf4.reset();
    // Topologically Sorted Source Nodes: [silu, conv2d], Original ATen: [aten.silu, aten.convolution]
    AtenTensorHandle buf6_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_convolution(buf5, arg4_1, nullptr, std::array<int64_t, 2>{1L, 1L}.cbegin(), 2, std::array<int64_t, 2>{1L, 1L}.cbegin(), 2, std::array<int64_t, 2>{1L, 1L}.cbegin(), 2, 0, std::array<int64_t, 2>{0L, 0L}.cbegin(), 2, 1L, &buf6_handle));
    RAIIAtenTensorHandle buf6(buf6_handle);
    arg4_1.reset();
    const int64_t int_array_6[] = {s39, 1280L};
    static constexpr int64_t int_array_7[] = {1280L, 1L};
    AtenTensorHandle buf7_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_6, int_array_7, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf7_handle));
    RAIIAtenTensorHandle buf7(buf7_handle);
    // Topologically Sorted Source Nodes: [silu_1], Original ATen: [aten.silu]
    int64_t triton_poi_fused_silu_3_xnumel = 1280L*s39;
    call_triton_poi_fused_silu_3(arg1_1, buf7, triton_poi_fused_silu_3_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg1_1.reset();
    const int64_t int_array_8[] = {s39, 320L};
    static constexpr int64_t int_array_9[] = {320L, 1L};
    AtenTensorHandle buf8_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_8, int_array_9, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf8_handle));
    RAIIAtenTensorHandle buf8(buf8_handle);
    // Topologically Sorted Source Nodes: [silu_1, linear], Original ATen: [aten.silu, aten.t, aten.addmm]
    static constexpr int64_t int_array_10[] = {1280L, 320L};
    static constexpr int64_t int_array_11[] = {1L, 1280L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf8, buf7, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg6_1, 2, int_array_10, int_array_11, 0L))));
    arg6_1.reset();
    buf7.reset();
    auto buf9 = std::move(buf1);  // reuse
    auto buf10 = std::move(buf0);  // reuse
    // Topologically Sorted Source Nodes: [silu, conv2d, linear, unsqueeze, unsqueeze_1, add, group_norm_1], Original ATen: [aten.silu, aten.convolution, aten.addmm, aten.unsqueeze, aten.add, aten.clone, aten.native_group_norm]
    int64_t triton_red_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_4_xnumel = 32L*s39;
    int64_t triton_red_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_4_r0_numel = 10L*s82*s89;
    call_triton_red_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_4(buf6, arg5_1, arg7_1, buf8, buf9, buf10, s82, s89, triton_red_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_4_xnumel, triton_red_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_4_r0_numel, this->device_idx_, stream, kernels, this->cubin_dir_);
    const int64_t int_array_12[] = {s39, 320L, s89, s82};
    const int64_t int_array_13[] = {320L*s82*s89, s82*s89, s82, 1L};
    auto buf13 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf5, 4, int_array_12, int_array_13, 0L)); buf5.reset();  // reuse
    // Topologically Sorted Source Nodes: [silu, conv2d, linear, unsqueeze, unsqueeze_1, add, group_norm_1, silu_2, conv2d_1], Original ATen: [aten.silu, aten.convolution, aten.addmm, aten.unsqueeze, aten.add, aten.clone, aten.native_group_norm]
    int64_t triton_poi_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_5_ynumel = s39*s82*s89;
    call_triton_poi_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_5(buf6, arg5_1, arg7_1, buf8, buf9, buf10, arg8_1, arg9_1, buf13, ps0, s82, s89, triton_poi_fused_add_addmm_clone_convolution_native_group_norm_silu_unsqueeze_5_ynumel, 320L, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg5_1.reset();
    arg7_1.reset();
    arg8_1.reset();
    arg9_1.reset();
    buf10.reset();
    buf8.reset();
    buf9.reset();
    auto buf14 = std::move(buf6);  // reuse
    // Topologically Sorted Source Nodes: [silu_2, conv2d_1], Original ATen: [aten.silu, aten.convolution]
    triton_poi_fused_convolution_silu_2_ynumel = 320L*s39;
    triton_poi_fused_convolution_silu_2_xnumel = s82*s89;
    call_triton_poi_fused_convolution_silu_2(buf13, buf14, s82, s89, triton_poi_fused_convolution_silu_2_ynumel, triton_poi_fused_convolution_silu_2_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    buf13.reset();
    // Topologically Sorted Source Nodes: [silu_2, conv2d_1], Original ATen: [aten.silu, aten.convolution]
    AtenTensorHandle buf15_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_convolution(buf14, arg10_1, nullptr, std::array<int64_t, 2>{1L, 1L}.cbegin(), 2, std::array<int64_t, 2>{1L, 1L}.cbegin(), 2, std::array<int64_t, 2>{1L, 1L}.cbegin(), 2, 0, std::array<int64_t, 2>{0L, 0L}.cbegin(), 2, 1L, &buf15_handle));
    RAIIAtenTensorHandle buf15(buf15_handle);
    arg10_1.reset();
    buf14.reset();
    auto buf16 = std::move(buf15);  // reuse
    // Topologically Sorted Source Nodes: [silu_2, conv2d_1, add_1], Original ATen: [aten.silu, aten.convolution, aten.add]
    int64_t triton_poi_fused_add_convolution_silu_6_xnumel = 320L*s39*s82*s89;
    call_triton_poi_fused_add_convolution_silu_6(buf16, arg0_1, arg11_1, triton_poi_fused_add_convolution_silu_6_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg0_1.reset();
    arg11_1.reset();
    output_handles[0] = buf16.release();
}
