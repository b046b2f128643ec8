// CUDA runtime: memory. Allocations reserve address space; copies to the host deliver zeros.
#include "fake_cuda.hpp"

#include <sys/mman.h>

#include <cstring>

struct Range {
    size_t size;
    bool on_device;
};
static std::map<const char*, Range> ranges;
static size_t used = 0;

static cudaError_t allocate(void** address, size_t bytes, bool on_device) {
    LOCKED;
    *address = nullptr;
    if (!bytes) return cudaSuccess;
    if (breaks_capture(on_device ? "cudaMalloc" : "cudaHostAlloc")) return capture_error();
    size_t size = (bytes + PAGE - 1) / PAGE * PAGE;
    if (on_device && used + size > MEMORY - CONTEXT) return set_error(cudaErrorMemoryAllocation);
    void* taken = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (taken == MAP_FAILED) return set_error(cudaErrorMemoryAllocation);
    ranges[(const char*)taken] = {size, on_device};
    if (on_device) used += size;
    *address = taken;
    return cudaSuccess;
}
static const Range* range_of(const void* address) {
    auto next = ranges.upper_bound((const char*)address);
    if (next == ranges.begin()) return nullptr;
    auto& [start, range] = *--next;
    return (const char*)address < start + range.size ? &range : nullptr;
}
bool is_device_memory(const void* address) {
    LOCKED;
    const Range* range = range_of(address);
    return range && range->on_device;
}

extern "C" {
cudaError_t cudaMalloc(void** address, size_t bytes) { return allocate(address, bytes, true); }
cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) { return allocate(address, bytes, false); }
cudaError_t cudaFree(void* address) {
    LOCKED;
    if (!address) return cudaSuccess;
    if (breaks_capture("cudaFree")) return capture_error();
    auto it = ranges.find((const char*)address);
    if (it == ranges.end()) return report_misuse("free of memory that was not allocated"), set_error(cudaErrorInvalidValue);
    if (it->second.on_device) used -= it->second.size;
    munmap(address, it->second.size);
    ranges.erase(it);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) { return cudaFree(address); }
cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
    LOCKED;
    ranges[(const char*)address] = {bytes, false};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* address) {
    LOCKED;
    ranges.erase((const char*)address);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    LOCKED;
    return *total = MEMORY, *free = MEMORY - CONTEXT - used, cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    LOCKED;
    memset(attributes, 0, sizeof *attributes);
    const Range* range = range_of(address);
    attributes->type = !range ? cudaMemoryTypeUnregistered : range->on_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->device = range ? 0 : -2;
    (is_device_memory(address) ? attributes->devicePointer : attributes->hostPointer) = (void*)address;
    return cudaSuccess;
}
// The host reads zeros: nothing was computed.
static cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    LOCKED;
    bool out = is_device_memory(from) && !is_device_memory(to), in = !is_device_memory(from) && is_device_memory(to);
    counts.to_host += out;
    counts.from_host += in;
    if (out && !is_capturing(stream)) memset(to, 0, bytes);
    return enqueue(stream, out ? "copy to the host" : in ? "copy from the host" : "copy");
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    if (breaks_capture("cudaMemcpy")) return capture_error();
    return copy(to, from, bytes, nullptr);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return copy(to, from, bytes, stream);
}
cudaError_t cudaMemset(void*, int, size_t) { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t stream) { return enqueue(stream, "memset"); }
}
