// What an exported model consists of, as the file runner.txt beside it says.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace qc {

struct FileRecord {
  std::string name;
  uint64_t bytes = 0;
  std::string sha256;
};

/// A tensor in the weights file, `offset` bytes from its beginning.
struct WeightFacts {
  std::string name;
  DLDataType type{};
  uint64_t offset = 0;
  std::vector<int64_t> shape;
};

/// One cache tensor, [1, heads, context, row].
struct CacheFacts {
  int64_t heads = 0;
  int64_t row = 0;
  DLDataType type{};
};

/// A function of model.so: run by TVM's virtual machine, or called as a whole, as a step.
struct FunctionFacts {
  bool is_step = false;
  std::string symbol;
  int64_t shared_bytes = 0;
  int64_t thread_bytes = 0;
};

/// What a chat template writes around messages.
struct ChatFacts {
  std::string refused;  // why there is no chatting, if so
  std::string opening, ending;
  std::optional<std::string> before_system, after_system, before_answer, after_answer;
  std::set<std::string> trimmed;
};

struct Artifact {
  std::string folder;
  std::string name, tvm, target, arch;
  std::vector<std::string> features;
  int64_t vocab_size = 0;
  int64_t max_context = 0;
  std::set<int32_t> end_tokens;
  std::optional<int32_t> begin_token;
  ChatFacts chat;
  std::vector<FileRecord> files;
  std::vector<CacheFacts> caches;
  FunctionFacts prefill, decode;
  std::vector<WeightFacts> weights;

  /// Return what is known of a file; null if there is none.
  const FileRecord* file(const std::string& title) const;
  std::string path(const std::string& title) const { return folder + "/" + title; }
};

/// Bytes of a tensor.
uint64_t bytes_of(DLDataType type, const std::vector<int64_t>& shape);

/// Read runner.txt; it has a hash of itself.
Artifact read_artifact(const std::string& folder);

/// Fail unless a file has the size, and if `hash` is set the content, that it should have.
void verify_file(const Artifact& artifact, const FileRecord& record, const void* data, size_t size,
                 bool hash);

}  // namespace qc
