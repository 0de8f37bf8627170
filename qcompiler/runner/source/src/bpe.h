// Byte-pair encoding: from the characters of a word to tokens, by merging pairs.
#pragma once

#include <string_view>
#include <unordered_map>
#include <vector>

#include "binary_reader.h"

namespace qc {

/// The text of each token, and whether it is special.
class TokenTexts {
 public:
  explicit TokenTexts(BinaryReader& file);
  size_t size() const { return flags_.size; }
  bool exists(size_t token) const { return token < size() && (flags_[token] & 1) != 0; }
  bool is_special(size_t token) const { return (flags_[token] & 2) != 0; }
  /// What a token of the model's vocabulary is.
  std::string_view text(size_t token) const {
    return texts_.substr(places_[token], places_[token + 1] - places_[token]);
  }
  /// What a token is decoded as: added ones that are normalised are something else.
  std::string_view shown(size_t token) const {
    const auto found = shown_.find(token);
    return found == shown_.end() ? text(token) : found->second;
  }

 private:
  Numbers places_, flags_;
  std::string_view texts_;
  std::unordered_map<size_t, std::string_view> shown_;
};

class Bpe {
 public:
  /// The texts follow the model in the file.
  explicit Bpe(BinaryReader& file);

  const TokenTexts& texts() const { return texts_; }

  /// Append the tokens of a word.
  void encode(std::string_view word, std::vector<int32_t>& out) const;

 private:
  int64_t find(std::string_view text) const;
  const uint32_t* merge(int32_t left, int32_t right) const;
  std::vector<int32_t> characters(std::string_view word) const;
  void merge_all(const std::vector<int32_t>& word, std::vector<int32_t>& out) const;

  uint32_t unknown_;
  bool fuse_unknown_, ignore_merges_;
  Numbers bytes_;   // the token of each byte, where bytes are tokens
  Numbers sorted_;  // tokens of the model in the order of their texts
  Numbers merges_;  // left, right, rank, result; in this order
  TokenTexts texts_;
};

}  // namespace qc
