// The machine code of an artifact and its weights, loaded and ready to call.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "artifact.h"
#include "ffi.h"
#include "memory.h"
#include "workers.h"

namespace qc {

/// Functions of an artifact together with their weights. One thread computes at a time.
class Executable {
 public:
  Executable(const Artifact& artifact, int threads, bool map_weights, bool verify);

  const Workers& workers() const { return workers_; }

  /// Run a function of the virtual machine on some arguments; its weights are added.
  ffi::Object run(const std::string& name, std::initializer_list<TVMFFIAny> arguments);

  /// Run a function that is called as a whole, with its table of addresses and the tokens that
  /// caches have room for; below 0 where there are no caches.
  void run_step(const ffi::Object& function, int64_t* table, int64_t capacity);

  /// Return a function that takes no weights, by its symbol.
  ffi::Object function(const std::string& symbol) const;
  /// Where the weights lie, in the order in which functions take them.
  const std::vector<int64_t>& addresses() const { return addresses_; }

 private:
  Workers workers_;
  std::mutex mutex_;
  // In this order: what is below uses what is above, and goes first.
  FileMemory file_;
  ffi::Object library_;
  ffi::Object machine_;
  ffi::Object weights_;
  ffi::Object prefill_;
  ffi::Object decode_;
  std::vector<int64_t> addresses_;
};

}  // namespace qc
