// CUDA runtime: kernels. Their names are registered and their launches counted; none is executed.
#include "fake_cuda.hpp"

#include <cstring>
#include <unordered_map>
#include <vector>

using Names = std::unordered_map<const void*, std::string>;
static Names& kernels() {  // on first use: kernels register before this file's static variables are initialised
    static Names* names = new Names();
    return *names;
}
static std::string name_of(const void* kernel) {
    auto it = kernels().find(kernel);
    return it == kernels().end() ? "a kernel" : it->second;
}
struct Launch {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
static thread_local std::vector<Launch> pending;  // pushed by <<<...>>>, popped by the launch that follows
extern "C" {
void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, void*, void*, void*, void*, int*) {
    LOCKED;
    kernels()[kernel] = name;
}
char __cudaInitModule(void**) { return 1; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
    pending.push_back({grid, block, shared, stream});
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    Launch launch = pending.back();
    pending.pop_back();
    return *grid = launch.grid, *block = launch.block, *shared = launch.shared, *(cudaStream_t*)stream = launch.stream, cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) { return *kernel = (cudaKernel_t)function, cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
    return enqueue(stream, name_of(kernel), grid, block, shared);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
    return enqueue(stream, name_of(kernel), grid, block, shared);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
    return enqueue(config->stream, name_of(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    return attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32, attributes->binaryVersion = attributes->ptxVersion = 90, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t) {
    return *blocks = 2048 / (threads > 0 ? threads : 128), cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads, size_t, unsigned) {
    return *blocks = 2048 / (threads > 0 ? threads : 128), cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** address, const void*) {
    static void* some = nullptr;
    if (!some) cudaMalloc(&some, PAGE);
    return *address = some, cudaSuccess;
}
}
