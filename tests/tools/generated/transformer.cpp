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

static inline void call_triton_poi_fused_clone_native_group_norm_1(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const in_ptr4_type_& in_ptr4,
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

static inline void call_triton_per_fused_add_native_layer_norm_2(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const out_ptr2_type_& out_ptr2,
    int64_t xnumel,
    int64_t r0_numel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_per_fused_add_native_layer_norm_view_3(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const in_ptr4_type_& in_ptr4,
    const out_ptr2_type_& out_ptr2,
    int64_t xnumel,
    int64_t r0_numel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_per_fused_add_native_layer_norm_view_4(
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    const in_ptr4_type_& in_ptr4,
    const in_ptr5_type_& in_ptr5,
    const out_ptr2_type_& out_ptr2,
    int64_t xnumel,
    int64_t r0_numel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_gelu_mul_split_view_5(
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

static inline void call_triton_poi_fused_add_view_6(
    const in_out_ptr0_type_& in_out_ptr0,
    const in_ptr0_type_& in_ptr0,
    const in_ptr1_type_& in_ptr1,
    const in_ptr2_type_& in_ptr2,
    const in_ptr3_type_& in_ptr3,
    int64_t xnumel,
    int32_t device_idx_,
    cudaStream_t stream_,
    kernels_type_& kernels_,
    const std::optional<std::string>& cubin_dir_ = std::nullopt
){
    // the kernel, and its launch
}

static inline void call_triton_poi_fused_add_addmm_permute_view_7(
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

    auto inputs = steal_from_raw_handles_to_raii_handles(input_handles, 28);
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
    auto arg12_1 = std::move(inputs[12]);
    auto arg13_1 = std::move(inputs[13]);
    auto arg14_1 = std::move(inputs[14]);
    auto arg15_1 = std::move(inputs[15]);
    auto arg16_1 = std::move(inputs[16]);
    auto arg17_1 = std::move(inputs[17]);
    auto arg18_1 = std::move(inputs[18]);
    auto arg19_1 = std::move(inputs[19]);
    auto arg20_1 = std::move(inputs[20]);
    auto arg21_1 = std::move(inputs[21]);
    auto arg22_1 = std::move(inputs[22]);
    auto arg23_1 = std::move(inputs[23]);
    auto arg24_1 = std::move(inputs[24]);
    auto arg25_1 = std::move(inputs[25]);
    auto arg26_1 = std::move(inputs[26]);
    auto arg27_1 = std::move(inputs[27]);

    auto arg0_1_size = arg0_1.sizes();
    int64_t s39 = arg0_1_size[0];
    int64_t s89 = arg0_1_size[2];
    int64_t s82 = arg0_1_size[3];
    auto arg1_1_size = arg1_1.sizes();
    int64_t s25 = arg1_1_size[1];
    inputs.clear();
    [[maybe_unused]] auto& kernels = static_cast<AOTInductorModelKernels&>(*this->kernels_.get());

    AOTICudaStreamGuard stream_guard(stream, this->device_idx_);
    const int64_t int_array_0[] = {s39, 32L, 1L, 1L};
    const int64_t int_array_1[] = {32L, 1L, 32L*s39, 32L*s39};
    AtenTensorHandle buf0_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_0, int_array_1, cached_torch_dtype_float32, cached_torch_device_type_cuda, this->device_idx_, &buf0_handle));
    RAIIAtenTensorHandle buf0(buf0_handle);
    const int64_t int_array_2[] = {s39, 32L, 1L, 1L};
    const int64_t int_array_3[] = {32L, 1L, 32L*s39, 32L*s39};
    AtenTensorHandle buf1_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_2, int_array_3, cached_torch_dtype_float32, cached_torch_device_type_cuda, this->device_idx_, &buf1_handle));
    RAIIAtenTensorHandle buf1(buf1_handle);
    // Topologically Sorted Source Nodes: [group_norm], Original ATen: [aten.clone, aten.native_group_norm]
    int64_t triton_red_fused_clone_native_group_norm_0_xnumel = 32L*s39;
    int64_t triton_red_fused_clone_native_group_norm_0_r0_numel = 10L*s82*s89;
    call_triton_red_fused_clone_native_group_norm_0(arg0_1, buf0, buf1, s82, s89, triton_red_fused_clone_native_group_norm_0_xnumel, triton_red_fused_clone_native_group_norm_0_r0_numel, this->device_idx_, stream, kernels, this->cubin_dir_);
    const int64_t int_array_4[] = {s39, 320L, s89, s82};
    const int64_t int_array_5[] = {320L*s82*s89, s82*s89, s82, 1L};
    AtenTensorHandle buf3_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, int_array_4, int_array_5, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf3_handle));
    RAIIAtenTensorHandle buf3(buf3_handle);
    // Topologically Sorted Source Nodes: [group_norm], Original ATen: [aten.clone, aten.native_group_norm]
    int64_t triton_poi_fused_clone_native_group_norm_1_ynumel = 320L*s39;
    int64_t triton_poi_fused_clone_native_group_norm_1_xnumel = s82*s89;
    call_triton_poi_fused_clone_native_group_norm_1(arg0_1, buf0, buf1, arg2_1, arg3_1, buf3, s82, s89, triton_poi_fused_clone_native_group_norm_1_ynumel, triton_poi_fused_clone_native_group_norm_1_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg2_1.reset();
    arg3_1.reset();
    buf0.reset();
    buf1.reset();
    const int64_t int_array_6[] = {s39, s82*s89, 320L};
    const int64_t int_array_7[] = {320L*s82*s89, 320L, 1L};
    AtenTensorHandle buf4_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(3, int_array_6, int_array_7, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf4_handle));
    RAIIAtenTensorHandle buf4(buf4_handle);
    // Topologically Sorted Source Nodes: [group_norm, permute, flatten, flatten_1, linear], Original ATen: [aten.clone, aten.native_group_norm, aten.permute, aten.view, aten.t, aten.expand, aten.bmm]
    const int64_t int_array_8[] = {s39, s82*s89, 320L};
    const int64_t int_array_9[] = {320L*s82*s89, 1L, s82*s89};
    const int64_t int_array_10[] = {s39, 320L, 320L};
    static constexpr int64_t int_array_11[] = {0L, 1L, 320L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_bmm_out(buf4, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf3, 3, int_array_8, int_array_9, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg4_1, 3, int_array_10, int_array_11, 0L))));
    arg4_1.reset();
    const int64_t int_array_12[] = {s39, s82*s89, 320L};
    const int64_t int_array_13[] = {320L*s82*s89, 320L, 1L};
    auto buf8 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf3, 3, int_array_12, int_array_13, 0L)); buf3.reset();  // reuse
    // Topologically Sorted Source Nodes: [linear, layer_norm], Original ATen: [aten.add, aten.native_layer_norm]
    int64_t triton_per_fused_add_native_layer_norm_2_xnumel = s39*s82*s89;
    call_triton_per_fused_add_native_layer_norm_2(buf4, arg5_1, arg20_1, arg21_1, buf8, triton_per_fused_add_native_layer_norm_2_xnumel, 320L, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg20_1.reset();
    arg21_1.reset();
    const int64_t int_array_14[] = {s39*s82*s89, 320L};
    static constexpr int64_t int_array_15[] = {320L, 1L};
    AtenTensorHandle buf9_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_14, int_array_15, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf9_handle));
    RAIIAtenTensorHandle buf9(buf9_handle);
    // Topologically Sorted Source Nodes: [linear_1], Original ATen: [aten.view, aten.t, aten.mm]
    const int64_t int_array_16[] = {s39*s82*s89, 320L};
    static constexpr int64_t int_array_17[] = {320L, 1L};
    static constexpr int64_t int_array_18[] = {320L, 320L};
    static constexpr int64_t int_array_19[] = {1L, 320L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf9, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf8, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg6_1, 2, int_array_18, int_array_19, 0L))));
    arg6_1.reset();
    const int64_t int_array_20[] = {s39*s82*s89, 320L};
    static constexpr int64_t int_array_21[] = {320L, 1L};
    AtenTensorHandle buf10_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_20, int_array_21, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf10_handle));
    RAIIAtenTensorHandle buf10(buf10_handle);
    // Topologically Sorted Source Nodes: [linear_2], Original ATen: [aten.view, aten.t, aten.mm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf10, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf8, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg7_1, 2, int_array_18, int_array_19, 0L))));
    arg7_1.reset();
    AtenTensorHandle buf11_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_14, int_array_15, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf11_handle));
    RAIIAtenTensorHandle buf11(buf11_handle);
    // Topologically Sorted Source Nodes: [linear_3], Original ATen: [aten.view, aten.t, aten.mm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf11, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf8, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg8_1, 2, int_array_18, int_array_19, 0L))));
    arg8_1.reset();
    buf8.reset();
    // Topologically Sorted Source Nodes: [linear_1, unflatten, transpose, linear_2, unflatten_1, transpose_1, linear_3, unflatten_2, transpose_2, scaled_dot_product_attention], Original ATen: [aten._unsafe_view, aten.view, aten.transpose, aten._scaled_dot_product_flash_attention]
    const int64_t int_array_22[] = {s39, 8L, s82*s89, 40L};
    const int64_t int_array_23[] = {320L*s82*s89, 40L, 320L, 1L};
    double var_0 = 0.15811388300841897;
    AtenTensorHandle buf13_handle;
    AtenTensorHandle buf14_handle;
    auto buf12_4 = s82*s89;
    auto buf12_5 = s82*s89;
    AtenTensorHandle buf15_handle;
    AtenTensorHandle buf16_handle;
    AtenTensorHandle buf17_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda__scaled_dot_product_flash_attention(wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf9, 4, int_array_22, int_array_23, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf10, 4, int_array_22, int_array_23, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf11, 4, int_array_22, int_array_23, 0L)), 0.0, 0, 0, &var_0, &buf13_handle, &buf14_handle, nullptr, nullptr, &buf12_4, &buf12_5, &buf15_handle, &buf16_handle, &buf17_handle));
    RAIIAtenTensorHandle buf13(buf13_handle);
    RAIIAtenTensorHandle buf14(buf14_handle);
    RAIIAtenTensorHandle buf15(buf15_handle);
    RAIIAtenTensorHandle buf16(buf16_handle);
    RAIIAtenTensorHandle buf17(buf17_handle);
    buf10.reset();

    auto buf18 = std::move(buf9);  // reuse
    // Topologically Sorted Source Nodes: [transpose_3, flatten_5, linear_4], Original ATen: [aten.transpose, aten.view, aten.t, aten.addmm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf18, arg10_1, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf13, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg9_1, 2, int_array_18, int_array_19, 0L)), 1L, 1L));
    arg10_1.reset();
    arg9_1.reset();
    const int64_t int_array_24[] = {s39, s82*s89, 320L};
    const int64_t int_array_25[] = {320L*s82*s89, 320L, 1L};
    auto buf22 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf13, 3, int_array_24, int_array_25, 0L)); buf13.reset();  // reuse
    // Topologically Sorted Source Nodes: [linear, linear_4, add, layer_norm_1], Original ATen: [aten.add, aten.view, aten.native_layer_norm]
    int64_t triton_per_fused_add_native_layer_norm_view_3_xnumel = s39*s82*s89;
    call_triton_per_fused_add_native_layer_norm_view_3(buf18, buf4, arg5_1, arg22_1, arg23_1, buf22, triton_per_fused_add_native_layer_norm_view_3_xnumel, 320L, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg22_1.reset();
    arg23_1.reset();
    auto buf23 = std::move(buf11);  // reuse
    // Topologically Sorted Source Nodes: [linear, linear_4, add, layer_norm_1, linear_5], Original ATen: [aten.add, aten.view, aten.native_layer_norm, aten.t, aten.mm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf23, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf22, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg11_1, 2, int_array_18, int_array_19, 0L))));
    arg11_1.reset();
    buf22.reset();
    const int64_t int_array_26[] = {s25*s39, 320L};
    static constexpr int64_t int_array_27[] = {320L, 1L};
    AtenTensorHandle buf24_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_26, int_array_27, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf24_handle));
    RAIIAtenTensorHandle buf24(buf24_handle);
    // Topologically Sorted Source Nodes: [linear_6], Original ATen: [aten.view, aten.t, aten.mm]
    const int64_t int_array_28[] = {s25*s39, 768L};
    static constexpr int64_t int_array_29[] = {768L, 1L};
    static constexpr int64_t int_array_30[] = {768L, 320L};
    static constexpr int64_t int_array_31[] = {1L, 768L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf24, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg1_1, 2, int_array_28, int_array_29, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg12_1, 2, int_array_30, int_array_31, 0L))));
    arg12_1.reset();
    const int64_t int_array_32[] = {s25*s39, 320L};
    static constexpr int64_t int_array_33[] = {320L, 1L};
    AtenTensorHandle buf25_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_32, int_array_33, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf25_handle));
    RAIIAtenTensorHandle buf25(buf25_handle);
    // Topologically Sorted Source Nodes: [linear_7], Original ATen: [aten.view, aten.t, aten.mm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf25, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg1_1, 2, int_array_28, int_array_29, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg13_1, 2, int_array_30, int_array_31, 0L))));
    arg13_1.reset();
    arg1_1.reset();
    // Topologically Sorted Source Nodes: [linear_5, unflatten_3, transpose_4, linear_6, unflatten_4, transpose_5, linear_7, unflatten_5, transpose_6, scaled_dot_product_attention_1], Original ATen: [aten._unsafe_view, aten.view, aten.transpose, aten._scaled_dot_product_flash_attention]
    const int64_t int_array_34[] = {s39, 8L, s25, 40L};
    const int64_t int_array_35[] = {320L*s25, 40L, 320L, 1L};
    double var_1 = 0.15811388300841897;
    AtenTensorHandle buf27_handle;
    AtenTensorHandle buf28_handle;
    auto buf26_4 = s82*s89;
    auto buf26_5 = s25;
    AtenTensorHandle buf29_handle;
    AtenTensorHandle buf30_handle;
    AtenTensorHandle buf31_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda__scaled_dot_product_flash_attention(wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf23, 4, int_array_22, int_array_23, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf24, 4, int_array_34, int_array_35, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf25, 4, int_array_34, int_array_35, 0L)), 0.0, 0, 0, &var_1, &buf27_handle, &buf28_handle, nullptr, nullptr, &buf26_4, &buf26_5, &buf29_handle, &buf30_handle, &buf31_handle));
    RAIIAtenTensorHandle buf27(buf27_handle);
    RAIIAtenTensorHandle buf28(buf28_handle);
    RAIIAtenTensorHandle buf29(buf29_handle);
    RAIIAtenTensorHandle buf30(buf30_handle);
    RAIIAtenTensorHandle buf31(buf31_handle);
    buf24.reset();
    buf25.reset();

    auto buf32 = std::move(buf23);  // reuse
    // Topologically Sorted Source Nodes: [transpose_7, flatten_10, linear_8], Original ATen: [aten.transpose, aten.view, aten.t, aten.addmm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf32, arg15_1, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf27, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg14_1, 2, int_array_18, int_array_19, 0L)), 1L, 1L));
    arg14_1.reset();
    arg15_1.reset();
    const int64_t int_array_36[] = {s39, s82*s89, 320L};
    const int64_t int_array_37[] = {320L*s82*s89, 320L, 1L};
    auto buf36 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf27, 3, int_array_36, int_array_37, 0L)); buf27.reset();  // reuse
    // Topologically Sorted Source Nodes: [linear, linear_4, add, linear_8, add_1, layer_norm_2], Original ATen: [aten.add, aten.view, aten.native_layer_norm]
    int64_t triton_per_fused_add_native_layer_norm_view_4_xnumel = s39*s82*s89;
    call_triton_per_fused_add_native_layer_norm_view_4(buf32, buf18, buf4, arg5_1, arg24_1, arg25_1, buf36, triton_per_fused_add_native_layer_norm_view_4_xnumel, 320L, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg24_1.reset();
    arg25_1.reset();
    const int64_t int_array_38[] = {s39*s82*s89, 2560L};
    static constexpr int64_t int_array_39[] = {2560L, 1L};
    AtenTensorHandle buf37_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_38, int_array_39, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf37_handle));
    RAIIAtenTensorHandle buf37(buf37_handle);
    // Topologically Sorted Source Nodes: [linear, linear_4, add, linear_8, add_1, layer_norm_2, linear_9], Original ATen: [aten.add, aten.view, aten.native_layer_norm, aten.t, aten.addmm]
    static constexpr int64_t int_array_40[] = {320L, 2560L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf37, arg17_1, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf36, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg16_1, 2, int_array_40, int_array_19, 0L)), 1L, 1L));
    arg16_1.reset();
    arg17_1.reset();
    buf36.reset();
    const int64_t int_array_41[] = {s39, s82*s89, 1280L};
    const int64_t int_array_42[] = {1280L*s82*s89, 1280L, 1L};
    AtenTensorHandle buf38_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(3, int_array_41, int_array_42, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf38_handle));
    RAIIAtenTensorHandle buf38(buf38_handle);
    // Topologically Sorted Source Nodes: [linear_9, chunk, gelu, mul_3], Original ATen: [aten.view, aten.split, aten.gelu, aten.mul]
    int64_t triton_poi_fused_gelu_mul_split_view_5_xnumel = 1280L*s39*s82*s89;
    call_triton_poi_fused_gelu_mul_split_view_5(buf37, buf38, triton_poi_fused_gelu_mul_split_view_5_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    buf37.reset();
    const int64_t int_array_43[] = {s39*s82*s89, 320L};
    static constexpr int64_t int_array_44[] = {320L, 1L};
    AtenTensorHandle buf39_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_43, int_array_44, cached_torch_dtype_float16, cached_torch_device_type_cuda, this->device_idx_, &buf39_handle));
    RAIIAtenTensorHandle buf39(buf39_handle);
    // Topologically Sorted Source Nodes: [linear_9, chunk, gelu, mul_3, linear_10], Original ATen: [aten.view, aten.split, aten.gelu, aten.mul, aten.t, aten.addmm]
    const int64_t int_array_45[] = {s39*s82*s89, 1280L};
    static constexpr int64_t int_array_46[] = {1280L, 1L};
    static constexpr int64_t int_array_47[] = {1280L, 320L};
    static constexpr int64_t int_array_48[] = {1L, 1280L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf39, arg19_1, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf38, 2, int_array_45, int_array_46, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg18_1, 2, int_array_47, int_array_48, 0L)), 1L, 1L));
    arg18_1.reset();
    arg19_1.reset();
    buf38.reset();
    const int64_t int_array_49[] = {s39, s82*s89, 320L};
    const int64_t int_array_50[] = {320L*s82*s89, 320L, 1L};
    auto buf40 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf39, 3, int_array_49, int_array_50, 0L)); buf39.reset();  // reuse
    // Topologically Sorted Source Nodes: [linear, linear_4, add, linear_8, add_1, linear_10, add_2], Original ATen: [aten.add, aten.view]
    int64_t triton_poi_fused_add_view_6_xnumel = 320L*s39*s82*s89;
    call_triton_poi_fused_add_view_6(buf40, buf32, buf18, buf4, arg5_1, triton_poi_fused_add_view_6_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg5_1.reset();
    buf18.reset();
    buf32.reset();
    const int64_t int_array_51[] = {s39*s82*s89, 320L};
    static constexpr int64_t int_array_52[] = {320L, 1L};
    auto buf41 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf4, 2, int_array_51, int_array_52, 0L)); buf4.reset();  // reuse
    // Topologically Sorted Source Nodes: [linear, linear_4, add, linear_8, add_1, linear_10, add_2, linear_11, flatten_14], Original ATen: [aten.add, aten.view, aten.t, aten.addmm]
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf41, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf40, 2, int_array_16, int_array_17, 0L)), wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(arg26_1, 2, int_array_18, int_array_19, 0L))));
    arg26_1.reset();
    buf40.reset();
    const int64_t int_array_53[] = {s39, 320L, s89, s82};
    const int64_t int_array_54[] = {320L*s82*s89, 1L, 320L*s82, 320L};
    auto buf42 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf41, 4, int_array_53, int_array_54, 0L)); buf41.reset();  // reuse
    // Topologically Sorted Source Nodes: [linear_11, unflatten_6, permute_1, add_3], Original ATen: [aten.addmm, aten.view, aten.permute, aten.add]
    int64_t triton_poi_fused_add_addmm_permute_view_7_xnumel = 320L*s39*s82*s89;
    call_triton_poi_fused_add_addmm_permute_view_7(buf42, arg27_1, arg0_1, triton_poi_fused_add_addmm_permute_view_7_xnumel, this->device_idx_, stream, kernels, this->cubin_dir_);
    arg0_1.reset();
    arg27_1.reset();
    output_handles[0] = buf42.release();
}
