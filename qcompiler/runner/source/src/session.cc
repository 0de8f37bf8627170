#include "session.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "error.h"

namespace qc {
namespace {

// Tokens of a prompt that are read at once: enough to keep the matrix products busy, and few enough
// that their activations stay small.
constexpr int64_t kChunk = 512;
constexpr int64_t kSmallestCache = 256;  // tokens
constexpr DLDataType kInt64 = {kDLInt, 64, 1};

int64_t address(const Buffer& buffer) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(buffer.data()));
}

}  // namespace

Session::Session(Executable& executable, const Artifact& artifact)
    : executable_(executable),
      artifact_(artifact),
      token_(sizeof(int64_t)),
      position_(sizeof(int64_t)),
      logits_(static_cast<size_t>(artifact.vocab_size) * sizeof(float)) {
  token_tensor_ = ffi::tensor(token_.data(), kInt64, {1, 1});
  position_tensor_ = ffi::tensor(position_.data(), kInt64, {1});
  const FunctionFacts& decode = artifact.decode;
  if (!decode.is_step) return;
  step_ = executable.function(decode.symbol);
  const auto threads = executable.workers().count();
  const auto line = static_cast<int64_t>(kAlignment);
  memory_ = Buffer(static_cast<size_t>(line * (1 + threads) + decode.shared_bytes +
                                       threads * decode.thread_bytes));
}

const float* Session::read(const std::vector<int32_t>& tokens) {
  check(tokens);
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t size = std::min(kChunk, count - start);
    reserve(length_ + size);
    *position_.as<int64_t>() = length_;
    if (size == 1) {
      read_one(tokens[static_cast<size_t>(start)]);
    } else {
      read_chunk(tokens.data() + start, size);
    }
    // Only now: a call that fails leaves the sequence as it was.
    length_ += size;
  }
  return logits_.as<float>();
}

void Session::check(const std::vector<int32_t>& tokens) const {
  if (tokens.empty()) misuse("there are no tokens to read; give at least one");
  for (int32_t token : tokens) {
    if (token < 0 || token >= artifact_.vocab_size) {
      misuse("token " + std::to_string(token) + " is not in the vocabulary, which has " +
             std::to_string(artifact_.vocab_size) + " tokens");
    }
  }
  if (static_cast<int64_t>(tokens.size()) > room()) {
    misuse(std::to_string(tokens.size()) + " more tokens do not fit: the context of " +
           artifact_.name + " holds " + std::to_string(artifact_.max_context) + " tokens" +
           (length_ == 0 ? "" : ", " + std::to_string(length_) + " of which are taken"));
  }
}

void Session::read_one(int32_t token) {
  *token_.as<int64_t>() = token;
  if (step_) {
    executable_.run_step(step_, table_.data(), artifact_.caches.empty() ? -1 : capacity_);
    return;
  }
  keep_logits(executable_.run("decode", {token_tensor_.argument(), position_tensor_.argument(),
                                         cache_tensors_.argument()}));
}

void Session::read_chunk(const int32_t* tokens, int64_t count) {
  const Buffer ids(static_cast<size_t>(count) * sizeof(int64_t));
  std::copy(tokens, tokens + count, ids.as<int64_t>());
  // Of the logits, those of the last token alone are wanted.
  const Buffer rows(sizeof(int64_t));
  *rows.as<int64_t>() = count - 1;
  const ffi::Object ids_tensor = ffi::tensor(ids.data(), kInt64, {1, count});
  const ffi::Object rows_tensor = ffi::tensor(rows.data(), kInt64, {1});
  keep_logits(executable_.run("prefill", {ids_tensor.argument(), position_tensor_.argument(),
                                          rows_tensor.argument(), cache_tensors_.argument()}));
}

void Session::keep_logits(const ffi::Object& result) {
  const DLTensor& found = ffi::look(result);
  int64_t count = 1;
  for (int i = 0; i < found.ndim; ++i) count *= found.shape[i];
  if (count != artifact_.vocab_size || found.dtype.code != kDLFloat || found.dtype.bits != 32) {
    fail("the compiled model gave other logits than its facts say; export the runner again");
  }
  const auto* data = static_cast<const uint8_t*>(found.data) + found.byte_offset;
  std::memcpy(logits_.data(), data, static_cast<size_t>(count) * sizeof(float));
}

/// Make room for so many tokens in all. Room is doubled until it is enough, so that growing token
/// by token copies each token about once.
void Session::reserve(int64_t tokens) {
  if (tokens <= capacity_) return;
  int64_t capacity = std::max(capacity_, kSmallestCache);
  while (capacity < tokens) capacity *= 2;
  capacity = std::min(capacity, artifact_.max_context);
  std::vector<Buffer> grown;
  std::vector<ffi::Object> tensors;
  for (size_t index = 0; index < artifact_.caches.size(); ++index) {
    const CacheFacts& cache = artifact_.caches[index];
    const uint64_t row = bytes_of(cache.type, {cache.row});
    grown.emplace_back(static_cast<uint64_t>(cache.heads * capacity) * row);
    for (int64_t head = 0; head < cache.heads && length_ > 0; ++head) {
      std::memcpy(grown.back().data() + static_cast<uint64_t>(head * capacity) * row,
                  caches_[index].data() + static_cast<uint64_t>(head * capacity_) * row,
                  static_cast<uint64_t>(length_) * row);
    }
    tensors.push_back(
        ffi::tensor(grown.back().data(), cache.type, {1, cache.heads, capacity, cache.row}));
  }
  cache_tensors_ = ffi::array_of(tensors);
  caches_ = std::move(grown);
  capacity_ = capacity;
  if (step_) use_caches();
}

/// Write down where a step finds everything: its memory, inputs, outputs, caches and weights.
void Session::use_caches() {
  table_ = {address(memory_), address(token_), address(position_), address(logits_)};
  for (const Buffer& cache : caches_) table_.push_back(address(cache));
  const std::vector<int64_t>& weights = executable_.addresses();
  table_.insert(table_.end(), weights.begin(), weights.end());
}

}  // namespace qc
