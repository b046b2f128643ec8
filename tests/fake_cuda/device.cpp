// CUDA runtime: device, streams, events, capture and launch of graphs.
#include "fake_cuda.hpp"

#include <pthread.h>

#include <chrono>
#include <cstring>
#include <dlfcn.h>
#include <set>

std::recursive_mutex state;
Counts counts{};

using Clock = std::map<int, long>;  // vector clock: stream number -> how much of that stream's work is ordered before

struct Capture;
struct Stream {
    int number;
    Capture* capture = nullptr;
};
struct Event {
    double milliseconds = 0;
    bool recorded = false;
    long capture_number = 0;  // of the capture that it was recorded in, 0 for none
    Clock clock;
};
struct Capture {
    long number;
    Stream* origin;
    cudaStreamCaptureMode mode;
    pthread_t thread;
    bool broken = false;
    long nodes = 0;
    std::set<Stream*> members;
    Clock latest;                // of each stream, its work so far
    std::map<int, Clock> known;  // of each stream, the work of all streams that is ordered before its next
};

static Capture* active = nullptr;
static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
static thread_local cudaError_t last_error = cudaSuccess;

void report_misuse(const std::string& what) {
    fprintf(stderr, "fake CUDA: %s\n", what.c_str());
}

cudaError_t set_error(cudaError_t error) { return last_error = error; }

static Stream* stream_of(cudaStream_t handle) {
    static Stream legacy{0};
    return handle ? (Stream*)handle : &legacy;
}

bool breaks_capture(const char* call) {
    if (!active || thread_mode == cudaStreamCaptureModeRelaxed || active->mode == cudaStreamCaptureModeRelaxed) return false;
    if (active->mode != cudaStreamCaptureModeGlobal && !pthread_equal(active->thread, pthread_self())) return false;
    report_misuse(std::string(call) + " during a stream capture");
    active->broken = true;
    return true;
}

cudaError_t capture_error() { return set_error(cudaErrorStreamCaptureUnsupported); }

bool is_capturing(cudaStream_t stream) { return stream_of(stream)->capture; }

cudaError_t enqueue(cudaStream_t handle, const std::string& work, dim3 grid, dim3 block, size_t shared) {
    LOCKED;
    size_t threads = (size_t)block.x * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !threads || threads > 1024 || shared > 232448) {
        report_misuse("a launch with impossible dimensions: " + work);
        return set_error(cudaErrorInvalidConfiguration);
    }
    Stream* stream = stream_of(handle);
    if (Capture* capture = stream->capture) {
        capture->known[stream->number][stream->number] = ++capture->latest[stream->number];
        capture->nodes++;
        counts.captured++;
    } else {
        if (active && pthread_equal(active->thread, pthread_self())) report_misuse("outside the captured streams: " + work);
        counts.launches++;
    }
    return cudaSuccess;
}

extern "C" {
// The counts in their order in `Counts`; steps.py reads them, and its presence tells whether the fake is loaded.
long fake_cuda_count(int which) { return ((long*)&counts)[which]; }

// ---- the device
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? set_error(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr number, int) { return *value = attribute(number), cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, cudaSuccess; }
cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    return last_error = cudaSuccess, error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t) { return "fake CUDA error"; }
const char* cudaGetErrorString(cudaError_t error) {
    static thread_local char text[40];
    snprintf(text, sizeof text, "fake CUDA error %d", (int)error);
    return text;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "fake device without kernels");
    properties->major = 9;
    properties->totalGlobalMem = MEMORY;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->l2CacheSize = 50 << 20;
    properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerMultiprocessor = 233472;
    properties->sharedMemPerBlockOptin = 232448;
    properties->textureAlignment = 512;
    return cudaSuccess;
}
static int succeed() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char* symbol, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) *function = (void*)succeed;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    LOCKED;
    counts.waits++;
    return breaks_capture("cudaDeviceSynchronize") ? capture_error() : cudaSuccess;
}

// ---- streams and events
static cudaError_t make_stream(cudaStream_t* handle) {
    LOCKED;
    static int made = 0;
    *handle = (cudaStream_t) new Stream{++made};
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* handle) { return make_stream(handle); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned) { return make_stream(handle); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned, int) { return make_stream(handle); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    LOCKED;
    counts.waits++;
    return breaks_capture("cudaStreamSynchronize") ? capture_error() : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    LOCKED;
    return stream_of(handle)->capture && breaks_capture("cudaStreamQuery") ? capture_error() : cudaSuccess;
}
static double milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
static cudaError_t make_event(cudaEvent_t* handle) { return *handle = (cudaEvent_t) new Event(), cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* handle) { return make_event(handle); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) { return make_event(handle); }
cudaError_t cudaEventDestroy(cudaEvent_t handle) { return delete (Event*)handle, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
    LOCKED;
    Event* event = (Event*)handle;
    Stream* stream = stream_of(on);
    *event = {milliseconds(), true, 0, {}};
    if (Capture* capture = stream->capture) {
        event->capture_number = capture->number;
        event->clock = capture->known[stream->number];
    }
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned) { return cudaEventRecord(handle, on); }
cudaError_t cudaEventQuery(cudaEvent_t) {
    LOCKED;
    return breaks_capture("cudaEventQuery") ? capture_error() : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    LOCKED;
    counts.waits++;
    return breaks_capture("cudaEventSynchronize") ? capture_error() : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* elapsed, cudaEvent_t from, cudaEvent_t to) {
    *elapsed = (float)(((Event*)to)->milliseconds - ((Event*)from)->milliseconds);
    if (*elapsed < 0.001f) *elapsed = 0.001f;  // the resolution of a device's timer
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t awaited, unsigned) {
    LOCKED;
    Stream* stream = stream_of(handle);
    Event* event = (Event*)awaited;
    if (active && event->capture_number == active->number) {
        if (stream->number == 0) return report_misuse("the default stream waits for a captured one"), set_error(cudaErrorStreamCaptureImplicit);
        stream->capture = active;
        active->members.insert(stream);
        for (auto& [number, done] : event->clock) {
            long& known = active->known[stream->number][number];
            if (known < done) known = done;
        }
    } else if (stream->capture && event->recorded) {
        report_misuse("a captured stream waits for an event from outside its graph");
        stream->capture->broken = true;
        return set_error(cudaErrorStreamCaptureIsolation);
    }
    return cudaSuccess;
}

// ---- graphs
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    return *mode = before, cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    LOCKED;
    *status = stream_of(handle)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* number, cudaGraph_t* graph,
    const cudaGraphNode_t** before, const cudaGraphEdgeData** edges, size_t* count) {
    LOCKED;
    Capture* capture = stream_of(handle)->capture;
    cudaStreamIsCapturing(handle, status);
    if (capture && number) *number = capture->number;
    if (capture && graph) *graph = (cudaGraph_t)capture;
    if (before) *before = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    LOCKED;
    static long num_captures = 0;
    if (!handle || active) return report_misuse("a capture of the default stream, or inside another"), set_error(cudaErrorIllegalState);
    Stream* stream = stream_of(handle);
    active = new Capture{++num_captures, stream, mode, pthread_self()};
    active->members.insert(stream);
    stream->capture = active;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    LOCKED;
    Capture* capture = stream_of(handle)->capture;
    *graph = nullptr;
    if (!capture || capture->origin != stream_of(handle)) return set_error(cudaErrorIllegalState);
    Clock& known = capture->known[capture->origin->number];
    bool joined = true;
    for (auto& [number, latest] : capture->latest)
        if (number != capture->origin->number && known[number] < latest) joined = false;
    for (Stream* member : capture->members) member->capture = nullptr;
    active = nullptr;
    counts.graphs++;
    if (!joined) report_misuse("a stream of the capture was not joined");
    if (capture->broken || !joined) return set_error(cudaErrorStreamCaptureInvalidated);
    *graph = (cudaGraph_t)capture;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    if (!((Capture*)graph)->nodes) report_misuse("an empty graph");
    return *ready = (cudaGraphExec_t)graph, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
    counts.replays++;
    return enqueue(stream, "graph");
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (!nodes) *count = ((Capture*)graph)->nodes;
    return cudaSuccess;
}
}
