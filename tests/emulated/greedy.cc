// Reads a prompt and writes the likeliest tokens one after the other, as the runtime does in Python:
// the prompt through the virtual machine, each token through the step.
//
// Its argument is a file of words, made from an artifact's manifest: the library; the weights' file
// and how many there are, for each its offset, type's code, bits, dimensions; the caches' tokens,
// how many there are, for each its heads, row, type's code, bits; the step's symbol, shared bytes
// and bytes of a thread; the vocabulary; how many tokens to write; how many tokens the prompt has,
// and each. Prints the tokens, and writes the logits behind each to the file logits.bin.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

constexpr size_t kLine = 64;

struct Memory {
  void AllocData(DLTensor* tensor) {
    size_t size = tensor->dtype.bits / 8;
    for (int i = 0; i < tensor->ndim; ++i) size *= tensor->shape[i];
    size = (size / kLine + 1) * kLine;
    tensor->data = std::memset(std::aligned_alloc(kLine, size), 0, size);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor Zeros(const std::vector<int64_t>& shape, int code, int bits) {
  DLDataType type{static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  return ffi::Tensor::FromNDAlloc(Memory(), ffi::ShapeView(shape.data(), shape.size()), type,
                                  DLDevice{kDLCPU, 0});
}

size_t Bytes(const ffi::Tensor& tensor) {
  size_t size = tensor.dtype().bits / 8;
  for (int64_t extent : tensor.shape()) size *= extent;
  return size;
}

int64_t* Numbers(const ffi::Tensor& tensor) { return static_cast<int64_t*>(tensor.data_ptr()); }

int64_t Largest(const float* logits, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

int main(int, char** arguments) {
  std::ifstream plan(arguments[1]);
  std::string library, weights_file, symbol;
  size_t count = 0;
  plan >> library >> weights_file >> count;
  std::ifstream file(weights_file, std::ios::binary);
  ffi::Array<ffi::Tensor> weights, caches;
  for (size_t i = 0; i < count; ++i) {
    int64_t offset = 0;
    int code = 0, bits = 0, dimensions = 0;
    plan >> offset >> code >> bits >> dimensions;
    std::vector<int64_t> shape(dimensions);
    for (int64_t& extent : shape) plan >> extent;
    ffi::Tensor tensor = Zeros(shape, code, bits);
    file.seekg(offset);
    file.read(static_cast<char*>(tensor.data_ptr()), Bytes(tensor));
    weights.push_back(tensor);
  }
  int64_t capacity = 0;
  plan >> capacity >> count;
  for (size_t i = 0; i < count; ++i) {
    int64_t heads = 0, row = 0;
    int code = 0, bits = 0;
    plan >> heads >> row >> code >> bits;
    caches.push_back(Zeros({1, heads, capacity, row}, code, bits));
  }
  int64_t shared = 0, own = 0, vocabulary = 0, wanted = 0, length = 0;
  plan >> symbol >> shared >> own >> vocabulary >> wanted >> length;
  ffi::Tensor ids = Zeros({1, length}, kDLInt, 64), position = Zeros({1}, kDLInt, 64);
  ffi::Tensor rows = Zeros({1}, kDLInt, 64), token = Zeros({1, 1}, kDLInt, 64);
  for (int64_t i = 0; i < length; ++i) plan >> Numbers(ids)[i];
  Numbers(rows)[0] = length - 1;
  if (!plan || !file) return 1;

  ffi::Module module = ffi::Module::LoadFromFile(library);
  ffi::Module machine =
      module->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(1, 0, 1);
  ffi::Tensor first = machine->GetFunction("prefill").value()(ids, position, rows, caches, weights)
                          .cast<ffi::Tensor>();
  int64_t workers = ffi::Function::GetGlobalRequired("runtime.NumThreads")().cast<int64_t>();

  ffi::Tensor logits = Zeros({1, vocabulary}, kDLFloat, 32);
  const float* now = static_cast<const float*>(first.data_ptr());
  ffi::Tensor memory = Zeros({static_cast<int64_t>(kLine) * (1 + workers) + shared + workers * own},
                             kDLUInt, 8);
  std::vector<const void*> table = {memory.data_ptr(), token.data_ptr(), position.data_ptr(),
                                    logits.data_ptr()};
  for (const ffi::Tensor& cache : caches) table.push_back(cache.data_ptr());
  for (const ffi::Tensor& weight : weights) table.push_back(weight.data_ptr());
  ffi::Function step = module->GetFunction(symbol, true).value();

  std::ofstream seen("logits.bin", std::ios::binary);
  for (int64_t i = 0; i < wanted; ++i) {
    seen.write(reinterpret_cast<const char*>(now), vocabulary * sizeof(float));
    Numbers(token)[0] = Largest(now, vocabulary);
    Numbers(position)[0] = length + i;
    std::cout << Numbers(token)[0] << std::endl;
    step(static_cast<void*>(table.data()), capacity, workers);
    now = static_cast<const float*>(logits.data_ptr());
  }
  return 0;
}
