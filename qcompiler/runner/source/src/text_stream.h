// Text from tokens that arrive one at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace qc {

/// Turns tokens into pieces of text whose sum is the text of all tokens.
///
/// A token can end in the middle of a character, and decoders drop a space at the beginning of what
/// they are given. So a window of tokens is decoded with each new one, beginning with some whose
/// text is out already, and what is new at its end is given out, less bytes that may still become
/// a character.
class TextStream {
 public:
  /// `prompt` are the tokens that the text continues.
  TextStream(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt);

  /// Take the next token and return the text that is certain now, often of an earlier one.
  std::string push(int32_t token);
  /// Return the text that is left; `cut` leaves out a character that was cut in two.
  std::string finish(bool cut) const;

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> window_;
  std::string shown_;
  size_t complete_;  // tokens of the window whose text is out
};

}  // namespace qc
