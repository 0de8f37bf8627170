#include "decoder.h"

#include <utility>

#include "normalizer.h"
#include "pre_tokenizer.h"
#include "unicode.h"

namespace qc {
namespace {

std::string joined(const std::vector<std::string>& texts, const char* between) {
  std::string text;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) text += between;
    text += texts[i];
  }
  return text;
}

/// Return the byte that a token such as <0x0A> stands for; -1 if it is none.
int fallback_byte(const std::string& text) {
  if (text.size() != 6 || !starts_with(text, "<0x") || text[5] != '>') return -1;
  const std::string digits = text.substr(3, 2);
  if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) return -1;
  return std::stoi(digits, nullptr, 16);
}

/// Put bytes together; those that make no text are U+FFFD, each by itself.
std::vector<std::string> with_bytes(const std::vector<std::string>& texts) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_utf8(bytes)) {
      out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (const std::string& text : texts) {
    if (const int byte = fallback_byte(text); byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {
      flush();
      out.push_back(text);
    }
  }
  flush();
  return out;
}

/// Take a character away from both ends, as often as `start` and `stop` say at most.
std::string without_ends(std::string text, const std::string& mark, uint32_t start,
                         uint32_t stop) {
  for (; start > 0 && starts_with(text, mark); --start) text.erase(0, mark.size());
  for (; stop > 0 && text.size() >= mark.size() &&
         text.compare(text.size() - mark.size(), mark.size(), mark) == 0;
       --stop) {
    text.erase(text.size() - mark.size());
  }
  return text;
}

/// Return the bytes that the characters of a token stand for, or its own if one stands for none.
std::string bytes_of_characters(const std::string& text) {
  std::string bytes;
  for (size_t place = 0; place < text.size();) {
    const int byte = byte_of(next_character(text, place));
    if (byte < 0) return text;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace

Decoder::Decoder(BinaryReader& file) {
  for (uint32_t count = file.number(); count > 0; --count) {
    Step step;
    step.kind = static_cast<Kind>(file.number());
    file.check(step.kind <= kByteLevel);
    if (step.kind == kReplace || step.kind == kStrip || step.kind == kMetaspace) {
      step.first = file.text();
      file.check(!step.first.empty());
    }
    if (step.kind == kReplace) step.second = file.text();
    if (step.kind == kStrip || step.kind == kMetaspace) step.start = file.number();
    if (step.kind == kStrip) step.stop = file.number();
    steps_.push_back(std::move(step));
  }
}

std::string Decoder::decode(std::vector<std::string> texts) const {
  if (steps_.empty()) return joined(texts, " ");
  for (const Step& step : steps_) texts = apply(step, std::move(texts));
  return joined(texts, "");
}

std::vector<std::string> Decoder::apply(const Step& step, std::vector<std::string> texts) {
  switch (step.kind) {
    case kReplace:
      for (std::string& text : texts) text = replaced(text, step.first, step.second);
      return texts;
    case kByteFallback:
      return with_bytes(texts);
    case kFuse:
      return {joined(texts, "")};
    case kStrip:
      for (std::string& text : texts) {
        text = without_ends(std::move(text), step.first, step.start, step.stop);
      }
      return texts;
    case kMetaspace:
      // The space before the first word was not there.
      for (size_t i = 0; i < texts.size(); ++i) {
        texts[i] = replaced(texts[i], step.first, i == 0 && step.start != 0 ? "" : " ");
      }
      return texts;
    case kByteLevel: {
      std::string bytes;
      for (const std::string& text : texts) bytes += bytes_of_characters(text);
      return {repaired(bytes)};
    }
  }
  return texts;
}

}  // namespace qc
