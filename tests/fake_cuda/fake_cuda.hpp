// Shared by all files of the fake: a CUDA device that computes nothing. The host's calls are checked and counted.
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
    long launches, captured, replays, graphs, waits, from_host, to_host;
};
extern Counts counts;

constexpr size_t MEMORY = 79ull << 30, CONTEXT = 600ull << 20, PAGE = 2 << 20;  // bytes, as on an H100 with its context

// Prints a call that a real device would reject or whose result would be undefined; the tests fail on any such line.
void report_misuse(const std::string& what);
// Counts one kernel, copy or library call on a stream: a node of the graph if the stream is being captured, else a launch.
cudaError_t enqueue(cudaStream_t stream, const std::string& work, dim3 grid = 1, dim3 block = 1, size_t shared = 0);
// Whether a call that waits, allocates or loads is illegal in this thread because of a stream capture. Reports it if so.
bool breaks_capture(const char* call);
// Whether a stream is being captured.
bool is_capturing(cudaStream_t stream);
// Returns the error and stores it for cudaGetLastError; capture_error is the one for calls that a capture may not contain.
cudaError_t set_error(cudaError_t error);
cudaError_t capture_error();
int attribute(int number);
bool is_device_memory(const void* address);
