// cuBLAS and cuDNN: every matrix product, convolution and batch norm is one launch. cuBLAS's headers need those of the CUDA
// compiler, so its functions are declared here by symbol.
#include "fake_cuda.hpp"

#include <cudnn_graph.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

static thread_local cudaStream_t blas_stream, nn_stream;

#define CREATE(symbol) \
    extern "C" int symbol(void** made, ...) { return *made = calloc(1, 512), 0; }
#define LAUNCH(symbol, stream) \
    extern "C" int symbol() { return enqueue(stream, #symbol); }

CREATE(cublasCreate_v2)
extern "C" int cublasSetStream_v2(void*, cudaStream_t stream) { return blas_stream = stream, 0; }
extern "C" int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
extern "C" int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, 0; }
LAUNCH(cublasGemmEx, blas_stream)
LAUNCH(cublasSgemm_v2, blas_stream)
LAUNCH(cublasSgemmEx, blas_stream)
LAUNCH(cublasGemmStridedBatchedEx, blas_stream)
LAUNCH(cublasSgemmStridedBatched, blas_stream)
LAUNCH(cublasSgemv_v2, blas_stream)

CREATE(cublasLtMatmulDescCreate)
CREATE(cublasLtMatmulPreferenceCreate)
CREATE(cublasLtMatrixLayoutCreate)
extern "C" int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, void* result, int* count) {
    const size_t size = 96;  // sizeof(cublasLtMatmulHeuristicResult_t); all zero means success without a workspace
    return memset(result, 0, size), *count = 1, 0;
}
extern "C" int cublasLtMatmul(
    void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, size_t, cudaStream_t stream) {
    return enqueue(stream, "cublasLtMatmul");
}

CREATE(cudnnCreateTensorDescriptor)
CREATE(cudnnCreateFilterDescriptor)
CREATE(cudnnCreateConvolutionDescriptor)
CREATE(cudnnCreateActivationDescriptor)
CREATE(cudnnCreatePoolingDescriptor)
size_t cudnnGetVersion() { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "fake CUDA error"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { return *handle = (cudnnHandle_t) new char, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t stream) { return nn_stream = stream, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetStream(cudnnHandle_t, cudaStream_t* stream) { return *stream = nn_stream, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetProperty(libraryPropertyType which, int* value) {
    *value = which == MAJOR_VERSION ? CUDNN_MAJOR : which == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
    return CUDNN_STATUS_SUCCESS;
}
extern "C" int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, size_t* bytes) {
    return *bytes = 1024, 0;
}
extern "C" int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, void*, void*, size_t* bytes) {
    return *bytes = 1024, 0;
}
extern "C" int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* bytes) {
    return *bytes = 1024, 0;
}
LAUNCH(cudnnBatchNormalizationForwardTrainingEx, nn_stream)
LAUNCH(cudnnBatchNormalizationBackwardEx, nn_stream)
LAUNCH(cudnnBatchNormalizationForwardInference, nn_stream)
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
    return enqueue(nn_stream, "convolution"), CUDNN_STATUS_SUCCESS;
}

// cuDNN's backend API: descriptors store their attributes, and there is an engine for every operation.
struct Descriptor {
    std::map<int, std::vector<char>> values;
    std::map<int, int64_t> counts;
};
static size_t width(cudnnBackendAttributeType_t type) {
    switch (type) {
        case CUDNN_TYPE_BOOLEAN:
        case CUDNN_TYPE_CHAR: return 1;
        case CUDNN_TYPE_HANDLE:
        case CUDNN_TYPE_INT64:
        case CUDNN_TYPE_DOUBLE:
        case CUDNN_TYPE_VOID_PTR:
        case CUDNN_TYPE_BACKEND_DESCRIPTOR: return 8;
        default: return 4;
    }
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t* made) {
    return *made = new Descriptor(), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
    return delete (Descriptor*)descriptor, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(
    cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
    const void* values) {
    auto* object = (Descriptor*)descriptor;
    object->values[name].assign((const char*)values, (const char*)values + count * width(type));
    return object->counts[name] = count, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendGetAttribute(
    const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t room,
    int64_t* count, void* values) {
    auto* object = (Descriptor*)descriptor;
    int64_t stored = 1;
    if (object->counts.count(name)) {
        stored = object->counts[name];
        if (values) memcpy(values, object->values[name].data(), std::min(room, stored) * width(type));
    } else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE || name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX) {
        *(int64_t*)values = 1024;
    } else if (name != CUDNN_ATTR_ENGINEHEUR_RESULTS && name != CUDNN_ATTR_ENGINECFG_ENGINE) {
        stored = 0;
    }
    if (count) *count = stored;
    return CUDNN_STATUS_SUCCESS;
}
