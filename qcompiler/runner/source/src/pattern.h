// Regular expressions of pre-tokenisers, as programs that were made when the runner was exported.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "binary_reader.h"
#include "unicode.h"

namespace qc {

/// A set of characters.
class CharacterSet {
 public:
  explicit CharacterSet(BinaryReader& file);
  bool has(uint32_t character) const {
    return character < 128 ? ascii_[character] : has_beyond(character);
  }

 private:
  bool has_beyond(uint32_t character) const;
  Numbers ranges_;  // first and last character of each
  std::array<bool, 128> ascii_{};
};

/// A program that tries what comes first, first, and goes back where that fails.
class Pattern {
 public:
  Pattern(BinaryReader& file, const std::vector<CharacterSet>& sets);

  /// Return where matches begin and end, as numbers of characters.
  std::vector<std::pair<size_t, size_t>> find_all(const std::vector<uint32_t>& text,
                                                  const std::vector<CharacterSet>& sets) const;

 private:
  enum Op : uint32_t { kMatch = 0, kSet = 1, kSplit = 2, kJump = 3, kAhead = 4, kAtomic = 5 };
  struct Search;

  std::optional<size_t> match(const Search& search, size_t op, size_t at) const;

  Numbers code_;  // three numbers for each instruction
};

}  // namespace qc
