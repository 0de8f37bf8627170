#include "text_stream.h"

#include <algorithm>
#include <cstddef>

#include "unicode.h"

namespace qc {
namespace {

constexpr size_t kContext = 8;

/// Take away what stands for bytes that are not, or not yet, a character.
std::string without_replacements(std::string text) {
  static const std::string mark = "\xEF\xBF\xBD";
  while (text.size() >= mark.size() &&
         text.compare(text.size() - mark.size(), mark.size(), mark) == 0) {
    text.erase(text.size() - mark.size());
  }
  return text;
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt)
    : tokenizer_(tokenizer),
      window_(prompt.end() - static_cast<std::ptrdiff_t>(std::min(prompt.size(), kContext)),
              prompt.end()),
      shown_(tokenizer.decode(window_)),
      complete_(window_.size()) {}

std::string TextStream::push(int32_t token) {
  window_.push_back(token);
  const std::string text = tokenizer_.decode(window_);
  // Sentencepiece decoders give one replacement for each byte of a run as long as any of it is
  // incomplete, even for characters that were complete before.
  if (!starts_with(text, shown_)) return "";
  std::string certain = without_replacements(text);
  if (certain.size() <= shown_.size()) return "";
  std::string piece = certain.substr(shown_.size());
  shown_ = certain;
  if (certain == text) {
    // All is out; the newest tokens are context enough for the next.
    window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(complete_));
    shown_ = tokenizer_.decode(window_);
    complete_ = window_.size();
  }
  return piece;
}

std::string TextStream::finish(bool cut) const {
  std::string text = tokenizer_.decode(window_);
  size_t shown = shown_.size();
  if (!starts_with(text, shown_)) {
    // A run of bytes that never became characters: what is new are its last tokens.
    const auto begin = window_.begin() + static_cast<std::ptrdiff_t>(complete_);
    text = tokenizer_.decode(std::vector<int32_t>(begin, window_.end()));
    shown = 0;
  }
  const std::string rest = text.substr(shown);
  return cut ? without_replacements(rest) : rest;
}

}  // namespace qc
