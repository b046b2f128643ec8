// cuBLAS and cuDNN: every product, convolution and batch norm is one launch. cuBLAS's headers need a CUDA compiler's: its
// functions are declared by their symbols.
#include "fake_cuda.hpp"

#include <cudnn_graph.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

static thread_local cudaStream_t blas_stream, nn_stream;

#define NEW(symbol) \
    extern "C" int symbol(void** made, ...) { return *made = calloc(1, 512), 0; }
#define LAUNCH(symbol, stream) \
    extern "C" int symbol() { return give(stream, #symbol); }

NEW(cublasCreate_v2)
extern "C" int cublasSetStream_v2(void*, cudaStream_t stream) { return blas_stream = stream, 0; }
extern "C" int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
extern "C" int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, 0; }
LAUNCH(cublasGemmEx, blas_stream)
LAUNCH(cublasSgemm_v2, blas_stream)
LAUNCH(cublasSgemmEx, blas_stream)
LAUNCH(cublasGemmStridedBatchedEx, blas_stream)
LAUNCH(cublasSgemmStridedBatched, blas_stream)
LAUNCH(cublasSgemv_v2, blas_stream)

NEW(cublasLtMatmulDescCreate)
NEW(cublasLtMatmulPreferenceCreate)
NEW(cublasLtMatrixLayoutCreate)
extern "C" int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, void* found, int* count) {
    const size_t size = 96;  // of a cublasLtMatmulHeuristicResult_t; all zero: success, no workspace
    return memset(found, 0, size), *count = 1, 0;
}
extern "C" int cublasLtMatmul(
    void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, size_t, cudaStream_t stream) {
    return give(stream, "cublasLtMatmul");
}

NEW(cudnnCreateTensorDescriptor)
NEW(cudnnCreateFilterDescriptor)
NEW(cudnnCreateConvolutionDescriptor)
NEW(cudnnCreateActivationDescriptor)
NEW(cudnnCreatePoolingDescriptor)
size_t cudnnGetVersion() { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "stand-in error"; }
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
    return give(nn_stream, "convolution"), CUDNN_STATUS_SUCCESS;
}

// cuDNN's descriptors keep what they are given; there is an engine for everything.
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
    auto* own = (Descriptor*)descriptor;
    own->values[name].assign((const char*)values, (const char*)values + count * width(type));
    return own->counts[name] = count, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendGetAttribute(
    const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t room,
    int64_t* count, void* values) {
    auto* own = (Descriptor*)descriptor;
    int64_t found = 1;
    if (own->counts.count(name)) {
        found = own->counts[name];
        if (values) memcpy(values, own->values[name].data(), std::min(room, found) * width(type));
    } else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE || name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX) {
        *(int64_t*)values = 1024;
    } else if (name != CUDNN_ATTR_ENGINEHEUR_RESULTS && name != CUDNN_ATTR_ENGINECFG_ENGINE) {
        found = 0;
    }
    if (count) *count = found;
    return CUDNN_STATUS_SUCCESS;
}
