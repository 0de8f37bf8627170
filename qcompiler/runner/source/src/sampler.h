// How the next token is picked from its logits.
#pragma once

#include <cstdint>
#include <unordered_set>
#include <vector>

#include "qcompiler.h"
#include "random.h"

namespace qc {

/// Picks tokens for one text, with random numbers of its own.
class Sampler {
 public:
  /// `seen` are the tokens of the prompt, which the repetition penalty counts as well.
  Sampler(const qc_sampling& options, const std::vector<int32_t>& seen);

  int64_t seed() const { return seed_; }
  int32_t pick(const float* logits, size_t vocab_size);

 private:
  int32_t draw(const std::vector<double>& logits);

  qc_sampling options_;
  std::unordered_set<int32_t> seen_;
  int64_t seed_;
  Random random_;
};

}  // namespace qc
