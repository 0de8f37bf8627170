// From text to tokens and back, as the tokenizers library does it with the same tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bpe.h"
#include "decoder.h"
#include "memory.h"
#include "normalizer.h"
#include "pre_tokenizer.h"

namespace qc {

/// Tokens that are looked for in a text before anything else is done to it.
class AddedTokens {
 public:
  /// Take those that are looked for in normalised text, or the others.
  void add(int64_t token, uint32_t flags, std::string text);

  /// Split a text where one of them stands.
  void split(const Piece& piece, std::vector<Piece>& out) const;

 private:
  struct Added {
    int64_t token;
    bool left, right;  // takes the white space beside it
    std::string text;
  };
  const Added* longest(std::string_view text) const;

  std::array<std::vector<Added>, 256> by_first_byte_;  // the longest first
};

class Tokenizer {
 public:
  explicit Tokenizer(FileMemory file, const std::string& path);

  /// Return the tokens of a text, with those that the tokenizer puts around every text if asked.
  std::vector<int32_t> encode(const std::string& text, bool add_special) const;
  /// Return the text of tokens, without special ones.
  std::string decode(const std::vector<int32_t>& tokens) const;

 private:
  static BinaryReader opened(const FileMemory& file, const std::string& path);

  // In this order: each reads on where the one before has ended.
  FileMemory file_;
  BinaryReader reader_;
  struct Added {
    explicit Added(BinaryReader& file);
    AddedTokens plain, normalized;
  } added_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe model_;
  Decoder decoder_;
  Numbers before_, behind_;
};

}  // namespace qc
