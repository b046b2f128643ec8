// CUDA driver: what Triton's kernels and PyTorch's launcher of them call.
#include "fake_cuda.hpp"

#include <cstring>
#include <unistd.h>

static std::map<CUfunction, std::string> functions;

int attribute(int number) {  // as of an H100
    switch (number) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return 9;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 132;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 232448;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 233472;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
        default: return 0;
    }
}

extern "C" {
CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute number, CUdevice) { return *value = attribute(number), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = (CUcontext)16, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* live) { return *flags = 0, *live = 1, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)16, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "fake CUDA error", CUDA_SUCCESS; }
static CUresult load(CUmodule* module, bool is_valid) {
    if (!is_valid) report_misuse("a module that contains no machine code");
    if (breaks_capture("cuModuleLoad")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return *module = (CUmodule) new char, CUDA_SUCCESS;
}
CUresult cuModuleLoad(CUmodule* module, const char* path) { return load(module, !access(path, R_OK)); }
CUresult cuModuleLoadData(CUmodule* module, const void* image) { return load(module, !memcmp(image, "\177ELF", 4)); }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
    LOCKED;
    *function = (CUfunction) new char;
    functions[*function] = name;
    return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute number, CUfunction) {
    *value = number == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : number == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute number, CUdeviceptr address) {
    if (!is_device_memory((void*)address)) return report_misuse("a kernel gets a pointer to host memory"), CUDA_ERROR_INVALID_VALUE;
    if (number == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr*)value = address;
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void**, void**) {
    dim3 grid(config->gridDimX, config->gridDimY, config->gridDimZ), block(config->blockDimX, config->blockDimY, config->blockDimZ);
    return (CUresult)enqueue((cudaStream_t)config->hStream, functions[function], grid, block, config->sharedMemBytes);
}
CUresult cuLaunchKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y, unsigned z,
    unsigned shared, CUstream stream, void**, void**) {
    return (CUresult)enqueue((cudaStream_t)stream, functions[function], dim3(grid_x, grid_y, grid_z), dim3(x, y, z), shared);
}
}
