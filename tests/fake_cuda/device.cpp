// The runtime: the device, its streams and events, the recording of graphs.
#include "fake_cuda.hpp"

#include <pthread.h>

#include <chrono>
#include <cstring>
#include <dlfcn.h>
#include <set>

std::recursive_mutex state;
Counts counts{};

using Clock = std::map<int, long>;  // of each stream, how much of its work is known to be done before

struct Recording;
struct Stream {
    int number;
    Recording* recording = nullptr;
};
struct Event {
    double milliseconds = 0;
    bool recorded = false;
    long recording = 0;  // the number of the recording that it belongs to
    Clock clock;
};
struct Recording {
    long number;
    Stream* origin;
    cudaStreamCaptureMode mode;
    pthread_t thread;
    bool broken = false;
    long nodes = 0;
    std::set<Stream*> members;
    Clock latest;
    std::map<int, Clock> known;
};

static Recording* active = nullptr;
static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
static thread_local cudaError_t last_error = cudaSuccess;

void complain(const std::string& what) {
    fprintf(stderr, "stand-in: %s\n", what.c_str());
}

cudaError_t failed(cudaError_t error) { return last_error = error; }

static Stream* stream_of(cudaStream_t handle) {
    static Stream legacy{0};
    return handle ? (Stream*)handle : &legacy;
}

bool forbidden(const char* call) {
    if (!active || thread_mode == cudaStreamCaptureModeRelaxed || active->mode == cudaStreamCaptureModeRelaxed) return false;
    if (active->mode != cudaStreamCaptureModeGlobal && !pthread_equal(active->thread, pthread_self())) return false;
    complain(std::string(call) + " while a stream is recorded");
    active->broken = true;
    return true;
}

cudaError_t refused() { return failed(cudaErrorStreamCaptureUnsupported); }

bool is_recorded(cudaStream_t stream) { return stream_of(stream)->recording; }

cudaError_t give(cudaStream_t handle, const std::string& work, dim3 grid, dim3 block, size_t shared) {
    LOCKED;
    size_t threads = (size_t)block.x * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !threads || threads > 1024 || shared > 232448) {
        complain("a launch that no device can do: " + work);
        return failed(cudaErrorInvalidConfiguration);
    }
    Stream* stream = stream_of(handle);
    if (Recording* recording = stream->recording) {
        recording->known[stream->number][stream->number] = ++recording->latest[stream->number];
        recording->nodes++;
        counts.recorded++;
    } else {
        if (active && pthread_equal(active->thread, pthread_self())) complain("beside the recorded streams: " + work);
        counts.launches++;
    }
    return cudaSuccess;
}

extern "C" {
long fake_cuda_count(int which) { return ((long*)&counts)[which]; }

// ---- the device
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? failed(cudaErrorInvalidDevice) : cudaSuccess; }
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
const char* cudaGetErrorName(cudaError_t) { return "stand-in error"; }
const char* cudaGetErrorString(cudaError_t error) {
    static thread_local char text[40];
    snprintf(text, sizeof text, "stand-in error %d", (int)error);
    return text;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "stand-in without kernels");
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
static int nothing() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char* symbol, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* found) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) *function = (void*)nothing;
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    LOCKED;
    counts.waits++;
    return forbidden("cudaDeviceSynchronize") ? refused() : cudaSuccess;
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
    return forbidden("cudaStreamSynchronize") ? refused() : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    LOCKED;
    return stream_of(handle)->recording && forbidden("cudaStreamQuery") ? refused() : cudaSuccess;
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
    if (Recording* recording = stream->recording) {
        event->recording = recording->number;
        event->clock = recording->known[stream->number];
    }
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned) { return cudaEventRecord(handle, on); }
cudaError_t cudaEventQuery(cudaEvent_t) {
    LOCKED;
    return forbidden("cudaEventQuery") ? refused() : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    LOCKED;
    counts.waits++;
    return forbidden("cudaEventSynchronize") ? refused() : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* elapsed, cudaEvent_t from, cudaEvent_t to) {
    *elapsed = (float)(((Event*)to)->milliseconds - ((Event*)from)->milliseconds);
    if (*elapsed < 0.001f) *elapsed = 0.001f;  // the clock of a device has no finer steps
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t awaited, unsigned) {
    LOCKED;
    Stream* stream = stream_of(handle);
    Event* event = (Event*)awaited;
    if (active && event->recording == active->number) {
        if (stream->number == 0) return complain("the default stream waits for a recorded one"), failed(cudaErrorStreamCaptureImplicit);
        stream->recording = active;
        active->members.insert(stream);
        for (auto& [number, done] : event->clock) {
            long& known = active->known[stream->number][number];
            if (known < done) known = done;
        }
    } else if (stream->recording && event->recorded) {
        complain("a recorded stream waits for an event from outside its graph");
        stream->recording->broken = true;
        return failed(cudaErrorStreamCaptureIsolation);
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
    *status = stream_of(handle)->recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* number, cudaGraph_t* graph,
    const cudaGraphNode_t** before, const cudaGraphEdgeData** edges, size_t* count) {
    LOCKED;
    Recording* recording = stream_of(handle)->recording;
    cudaStreamIsCapturing(handle, status);
    if (recording && number) *number = recording->number;
    if (recording && graph) *graph = (cudaGraph_t)recording;
    if (before) *before = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    LOCKED;
    static long recordings = 0;
    if (!handle || active) return complain("a recording of the default stream, or inside another"), failed(cudaErrorIllegalState);
    Stream* stream = stream_of(handle);
    active = new Recording{++recordings, stream, mode, pthread_self()};
    active->members.insert(stream);
    stream->recording = active;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    LOCKED;
    Recording* recording = stream_of(handle)->recording;
    *graph = nullptr;
    if (!recording || recording->origin != stream_of(handle)) return failed(cudaErrorIllegalState);
    Clock& known = recording->known[recording->origin->number];
    bool joined = true;
    for (auto& [number, latest] : recording->latest)
        if (number != recording->origin->number && known[number] < latest) joined = false;
    for (Stream* member : recording->members) member->recording = nullptr;
    active = nullptr;
    counts.graphs++;
    if (!joined) complain("a stream of the recording was not joined");
    if (recording->broken || !joined) return failed(cudaErrorStreamCaptureInvalidated);
    *graph = (cudaGraph_t)recording;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    if (!((Recording*)graph)->nodes) complain("an empty graph");
    return *ready = (cudaGraphExec_t)graph, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
    counts.replays++;
    return give(stream, "graph");
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (!nodes) *count = ((Recording*)graph)->nodes;
    return cudaSuccess;
}
}
