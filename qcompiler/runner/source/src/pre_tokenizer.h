// How a text is split into words, each of which becomes tokens by itself.
#pragma once

#include <string>
#include <vector>

#include "binary_reader.h"
#include "pattern.h"

namespace qc {

/// A part of a text, or what has become of it; or the token that is already known to stand there.
struct Piece {
  std::string text;
  bool at_start = false;  // of the whole text
  int64_t token = -1;     // of an added token
};

class PreTokenizer {
 public:
  explicit PreTokenizer(BinaryReader& file);

  /// Split pieces that are no tokens yet.
  std::vector<Piece> split(std::vector<Piece> pieces) const;

 private:
  enum Kind : uint32_t { kSplit = 0, kByteCharacters = 1, kPrefixSpace = 2, kMetaspace = 3 };
  enum Behaviour : uint32_t {
    kIsolated = 0,
    kRemoved = 1,
    kMergedWithPrevious = 2,
    kMergedWithNext = 3,
    kContiguous = 4
  };
  enum Scheme : uint32_t { kAlways = 0, kNever = 1, kFirst = 2 };
  struct Step {
    Kind kind;
    uint32_t behaviour = 0, inverted = 0;
    std::vector<Pattern> pattern;  // one, where it splits
    std::string replacement;
    uint32_t scheme = 0, splits = 0;
  };

  void apply(const Step& step, Piece piece, std::vector<Piece>& out) const;
  void split_by_pattern(const Step& step, const Piece& piece, std::vector<Piece>& out) const;
  void split_metaspace(const Step& step, Piece piece, std::vector<Piece>& out) const;

  std::vector<CharacterSet> sets_;
  std::vector<Step> steps_;
};

/// Characters that stand for bytes, and back: those of GPT-2, which can all be seen.
const std::vector<std::string>& byte_characters();
/// Return the byte that a character stands for; -1 if it stands for none.
int byte_of(uint32_t character);

}  // namespace qc
