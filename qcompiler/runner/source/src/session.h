// One sequence that a model reads and continues, token by token.
#pragma once

#include <cstdint>
#include <vector>

#include "artifact.h"
#include "executable.h"
#include "memory.h"

namespace qc {

/// A sequence and its caches, which grow with what they hold.
class Session {
 public:
  /// Both have to outlive the session.
  Session(Executable& executable, const Artifact& artifact);

  /// Tokens read so far, and how many more there is room for.
  int64_t length() const { return length_; }
  int64_t room() const { return artifact_.max_context - length_; }

  /// Forget all tokens; memory is kept for the next.
  void reset() { length_ = 0; }

  /// Read tokens; return the logits of what comes after the last, valid until the next call.
  const float* read(const std::vector<int32_t>& tokens);

 private:
  void check(const std::vector<int32_t>& tokens) const;
  void read_chunk(const int32_t* tokens, int64_t count);
  void read_one(int32_t token);
  void reserve(int64_t tokens);
  void use_caches();
  void keep_logits(const ffi::Object& result);

  Executable& executable_;
  const Artifact& artifact_;
  int64_t length_ = 0;
  int64_t capacity_ = 0;
  std::vector<Buffer> caches_;
  ffi::Object cache_tensors_;
  Buffer token_;
  Buffer position_;
  Buffer logits_;
  ffi::Object token_tensor_;
  ffi::Object position_tensor_;
  // Of a step that is called as a whole: its memory, and the addresses of all that it uses.
  ffi::Object step_;
  Buffer memory_;
  std::vector<int64_t> table_;
};

}  // namespace qc
