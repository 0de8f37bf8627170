// Calls compiled kernels on arrays that arrive on standard input, and writes the arrays back.
//
// A request: the library's path (length int32, bytes), the number of arrays int32, and for each the
// type's code, bits and dimensions int32, the dimensions int64, and its bytes. The answer: an int32,
// 0 and the bytes of all arrays; or 1, a length int32 and what went wrong. All little-endian.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

// Kernels may rely on arrays that begin with a line of the cache.
constexpr size_t kAlignment = 64;

bool Read(void* to, size_t size) { return std::fread(to, 1, size, stdin) == size; }

int32_t ReadInt() {
  int32_t value = 0;
  if (!Read(&value, sizeof value)) std::exit(0);
  return value;
}

void Write(const void* from, size_t size) { std::fwrite(from, 1, size, stdout); }

void WriteInt(int32_t value) { Write(&value, sizeof value); }

struct Array {
  DLTensor tensor{};
  std::vector<int64_t> shape, strides;
  size_t bytes = 0;

  void Take() {
    tensor.dtype.code = static_cast<uint8_t>(ReadInt());
    tensor.dtype.bits = static_cast<uint8_t>(ReadInt());
    tensor.dtype.lanes = 1;
    tensor.device = DLDevice{kDLCPU, 0};
    tensor.ndim = ReadInt();
    shape.resize(tensor.ndim);
    strides.resize(tensor.ndim);
    if (!Read(shape.data(), shape.size() * sizeof(int64_t))) std::exit(0);
    int64_t count = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      strides[i] = count;
      count *= shape[i];
    }
    bytes = count * tensor.dtype.bits / 8;
    tensor.data = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
    tensor.shape = shape.data();
    tensor.strides = strides.data();
    if (!Read(tensor.data, bytes)) std::exit(0);
  }

  ~Array() { std::free(tensor.data); }
};

int main() {
  std::map<std::string, ffi::Module> modules;
  while (true) {
    std::string path(ReadInt(), ' ');
    if (!Read(path.data(), path.size())) return 0;
    std::vector<Array> arrays(ReadInt());
    for (Array& array : arrays) array.Take();
    try {
      if (!modules.count(path)) modules.emplace(path, ffi::Module::LoadFromFile(path));
      std::vector<ffi::AnyView> arguments;
      for (Array& array : arrays) arguments.emplace_back(&array.tensor);
      ffi::Any result;
      modules.at(path)->GetFunction("main").value().CallPacked(
          arguments.data(), static_cast<int32_t>(arguments.size()), &result);
      WriteInt(0);
      for (Array& array : arrays) Write(array.tensor.data, array.bytes);
    } catch (const std::exception& problem) {
      std::string text = problem.what();
      WriteInt(1);
      WriteInt(static_cast<int32_t>(text.size()));
      Write(text.data(), text.size());
    }
    std::fflush(stdout);
  }
}
