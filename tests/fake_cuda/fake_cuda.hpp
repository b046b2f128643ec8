// What the stand-in's parts share. A CUDA device that computes nothing: the host's calls are checked and counted.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <string>

extern std::recursive_mutex state;
#define LOCKED std::lock_guard<std::recursive_mutex> locked(state)

struct Counts {
    long launches, recorded, replays, graphs, waits, from_host, to_host;
};
extern Counts counts;

constexpr size_t MEMORY = 79ull << 30, CONTEXT = 600ull << 20, PAGE = 2 << 20;  // bytes; an H100 and its context

// Says what a real device would have refused, or would have done wrongly.
void complain(const std::string& what);
// One kernel, copy or library call given to a stream: a node of the graph that is recorded there, if one is.
cudaError_t give(cudaStream_t stream, const std::string& work, dim3 grid = 1, dim3 block = 1, size_t shared = 0);
// Whether this thread may not wait, allocate or load now, because a stream is recorded. Complains if so.
bool forbidden(const char* call);
// Whether a graph is recorded on a stream.
bool is_recorded(cudaStream_t stream);
// An error that cudaGetLastError tells too, and the one for what no recording may hold.
cudaError_t failed(cudaError_t error);
cudaError_t refused();
int attribute(int number);
bool is_device_memory(const void* address);
