// A driver and a runtime library of CUDA for a machine without a GPU: device memory is host memory,
// and a module is a shared library with the kernels compiled for the host.
//
// Only what TVM's runtime calls is here. Memory is filled with bytes 0xFF when it is allocated, and ends
// at a page that cannot be read, so that a kernel that reads what nobody wrote, or too far, is noticed.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

namespace {

constexpr size_t kPage = 4096;
constexpr int kInvalid = 1, kNoMemory = 2, kBadImage = 200, kNotFound = 500, kLaunchFailed = 719,
              kUnsupported = 801;

struct Allocation {
  void* base;
  size_t bytes;
};

std::map<void*, Allocation> allocations;
std::string problem = "no error";
unsigned long launches = 0;

int allocate(void** pointer, size_t bytes) {
  // Vectors of 16 bytes have to be aligned, whatever the size.
  size_t used = (bytes + 255) / 256 * 256, pages = (used + kPage - 1) / kPage * kPage;
  void* base = mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return kNoMemory;
  mprotect(static_cast<char*>(base) + pages, kPage, PROT_NONE);
  *pointer = static_cast<char*>(base) + (pages - used);
  memset(*pointer, 0xFF, used);
  allocations[*pointer] = {base, pages + kPage};
  return 0;
}

int release(void* pointer) {
  auto found = allocations.find(pointer);
  if (!pointer) return 0;
  if (found == allocations.end()) return kInvalid;
  munmap(found->second.base, found->second.bytes);
  allocations.erase(found);
  return 0;
}

size_t elf_bytes(const void* image) {
  const auto* header = static_cast<const Elf64_Ehdr*>(image);
  if (memcmp(header->e_ident, ELFMAG, SELFMAG)) return 0;
  return header->e_shoff + static_cast<size_t>(header->e_shnum) * header->e_shentsize;
}

struct Launch {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

using Kernel = const char* (*)(const unsigned*, const unsigned*, void**);

}  // namespace

extern "C" {

// -- driver -------------------------------------------------------------------------------------

int cuModuleLoadData(void** module, const void* image) {
  size_t bytes = elf_bytes(image);
  if (!bytes) {
    problem = "the module is for a GPU, and this driver emulates one: build with the emulated compiler";
    return kBadImage;
  }
  int file = memfd_create("kernels", 0);
  if (file < 0 || write(file, image, bytes) != static_cast<ssize_t>(bytes)) return kNoMemory;
  std::string path = "/proc/self/fd/" + std::to_string(file);
  *module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!*module) problem = dlerror();
  // The file stays open: the loader knows libraries by their paths, and this one must not come again.
  return *module ? 0 : kBadImage;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = dlsym(module, (std::string(name) + "_emulated").c_str());
  return *function ? 0 : kNotFound;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernelEx(const Launch* launch, void* function, void** arguments, void**) {
  ++launches;
  const char* wrong = reinterpret_cast<Kernel>(function)(launch->grid, launch->block, arguments);
  if (!wrong) return 0;
  problem = wrong;
  return kLaunchFailed;
}
int cuGetErrorName(int, const char** text) {
  *text = problem.c_str();  // TVM shows the name where it has no room for more
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = problem.c_str();
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  snprintf(name, size, "emulated GPU");
  return 0;
}
int cuTensorMapEncodeTiled() { return kUnsupported; }

unsigned long qc_emulated_launches() { return launches; }

// -- runtime ------------------------------------------------------------------------------------

int cudaGetDeviceCount(int* count) {
  *count = 1;
  return 0;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cudaSetDevice(int device) { return device ? 101 : 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 1: *value = 1024; break;        // threads of a block
    case 2: case 3: *value = 1024; break;
    case 4: *value = 64; break;
    case 8: *value = 48 << 10; break;    // shared memory of a block
    case 10: *value = 32; break;         // threads of a warp
    case 75: *value = 8; break;          // compute capability
    case 76: *value = 0; break;
    default: *value = 1;
  }
  return 0;
}
int cudaGetDeviceProperties(char* properties, int) {
  snprintf(properties, 256, "emulated GPU");
  return 0;
}
int cudaMalloc(void** pointer, size_t bytes) { return allocate(pointer, bytes); }
int cudaFree(void* pointer) { return release(pointer); }
int cudaMallocHost(void** pointer, size_t bytes) { return allocate(pointer, bytes); }
int cudaFreeHost(void* pointer) { return release(pointer); }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  memmove(to, from, bytes);
  return 0;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void*) {
  memmove(to, from, bytes);
  return 0;
}
int cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t(8) << 30;
  return 0;
}
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
const char* cudaGetErrorName(int) { return "emulated"; }
const char* cudaGetErrorString(int) { return problem.c_str(); }
int cudaStreamCreate(void** stream) {
  *stream = nullptr;
  return 0;
}
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void*) { return 0; }
int cudaStreamSynchronize(void*) { return 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void*, int) { return kUnsupported; }
int cudaStreamEndCapture(void*, void**) { return kUnsupported; }
int cudaEventCreate(void** event) { return cudaStreamCreate(event); }
int cudaEventDestroy(void*) { return 0; }
int cudaEventRecord(void*, void*) { return 0; }
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* milliseconds, void*, void*) {
  *milliseconds = 0;
  return 0;
}
int cudaGraphDestroy(void*) { return kUnsupported; }
int cudaGraphExecDestroy(void*) { return kUnsupported; }
int cudaGraphInstantiate(void**, void*, unsigned long long) { return kUnsupported; }
int cudaGraphLaunch(void*, void*) { return kUnsupported; }
}
