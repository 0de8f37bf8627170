// What is done to a text before it is split.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "binary_reader.h"

namespace qc {

/// Unicode's normal form C.
class Composer {
 public:
  explicit Composer(BinaryReader& file);
  std::string compose(std::string_view text) const;

 private:
  void decompose(uint32_t character, std::vector<uint32_t>& out) const;
  uint32_t combining_class(uint32_t character) const;
  uint32_t pair(uint32_t first, uint32_t second) const;

  std::unordered_map<uint32_t, std::vector<uint32_t>> decompositions_;
  std::unordered_map<uint64_t, uint32_t> pairs_;
  std::unordered_map<uint32_t, uint32_t> classes_;
};

class Normalizer {
 public:
  explicit Normalizer(BinaryReader& file);
  std::string normalize(std::string text) const;

 private:
  enum Kind : uint32_t { kPrepend = 0, kReplace = 1, kCompose = 2 };
  struct Step {
    Kind kind;
    std::string first, second;
  };
  std::vector<Step> steps_;
  std::vector<Composer> composers_;  // one, where there is such a step
};

/// Return a text in which one text stands for another.
std::string replaced(std::string_view text, std::string_view old, std::string_view by);

}  // namespace qc
