#include "executable.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "error.h"
#include "version.h"

namespace qc {
namespace {

// DLPack's device type, its number, and TVM's kind of allocator: malloc.
constexpr int kCpu = 1;
constexpr int kDevice = 0;
constexpr int kAllocator = 1;

/// Let compiled code find TVM's symbols, also where this library was loaded as a plugin's.
void publish_libraries() {
  for (const char* name : {"libtvm_ffi.so", "libtvm_runtime.so"}) {
    if (dlopen(name, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) == nullptr) {
      fail(std::string(name) + " is not loaded; build the runner with the libraries of its folder");
    }
  }
}

/// Return a path to a library that this process has not loaded other code by.
///
/// The dynamic loader knows a library by its path, and would run the old code where a model was
/// exported again to the same folder; as many './' as there were versions tell them apart.
std::string fresh_path(const std::string& folder, const FileRecord& record) {
  static std::mutex mutex;
  static std::map<std::string, std::vector<std::string>> versions;
  char* real = realpath(folder.c_str(), nullptr);
  std::string path = real == nullptr ? folder : real;
  std::free(real);
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<std::string>& known = versions[path];
  const auto found = std::find(known.begin(), known.end(), record.sha256);
  const auto place = found - known.begin();
  if (found == known.end()) known.push_back(record.sha256);
  path += "/";
  for (auto i = place; i > 0; --i) path += "./";
  return path + record.name;
}

void check_version(const Artifact& artifact) {
  const std::string built = QC_TVM_VERSION;
  if (artifact.tvm.empty() || built.empty() || artifact.tvm == built) return;
  fail("the model was compiled with TVM " + artifact.tvm + ", and this runner was built with " +
       built + "; build the runner that was exported with the model");
}

}  // namespace

Executable::Executable(const Artifact& artifact, int threads, bool map_weights, bool verify)
    : workers_(threads) {
  check_version(artifact);
  publish_libraries();
  const FileRecord& code = *artifact.file("model.so");
  const FileRecord& weights = *artifact.file("weights.safetensors");
  {
    const FileMemory bytes = FileMemory::map(artifact.path(code.name));
    verify_file(artifact, code, bytes.data(), bytes.size(), true);
  }
  const std::string path = artifact.path(weights.name);
  file_ = map_weights ? FileMemory::map(path) : FileMemory::read(path);
  verify_file(artifact, weights, file_.data(), file_.size(), verify);
  library_ = ffi::load_module(fresh_path(artifact.folder, code));
  machine_ = ffi::call(ffi::function_of(library_, "vm_load_executable"), {});
  ffi::call(ffi::function_of(machine_, "vm_initialization"),
            {ffi::number(kCpu), ffi::number(kDevice), ffi::number(kAllocator)});
  prefill_ = ffi::function_of(machine_, artifact.prefill.symbol);
  if (!artifact.decode.is_step) decode_ = ffi::function_of(machine_, artifact.decode.symbol);
  std::vector<ffi::Object> tensors;
  for (const WeightFacts& weight : artifact.weights) {
    // Kernels read weights only; the interface has no word for that.
    void* data = const_cast<uint8_t*>(file_.data()) + weight.offset;
    tensors.push_back(ffi::tensor(data, weight.type, weight.shape));
    addresses_.push_back(static_cast<int64_t>(reinterpret_cast<intptr_t>(data)));
  }
  weights_ = ffi::array_of(tensors);
}

ffi::Object Executable::run(const std::string& name, std::initializer_list<TVMFFIAny> arguments) {
  std::vector<TVMFFIAny> all(arguments);
  all.push_back(weights_.argument());
  const std::lock_guard<std::mutex> lock(mutex_);
  workers_.prepare();
  return ffi::call(name == "prefill" ? prefill_ : decode_, all.data(), all.size());
}

void Executable::run_step(const ffi::Object& function, int64_t* table, int64_t capacity) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int threads = workers_.prepare();
  if (capacity < 0) {
    ffi::call(function, {ffi::pointer(table), ffi::number(threads)});
  } else {
    ffi::call(function, {ffi::pointer(table), ffi::number(capacity), ffi::number(threads)});
  }
}

ffi::Object Executable::function(const std::string& symbol) const {
  return ffi::function_of(library_, symbol);
}

}  // namespace qc
