#include "pre_tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "normalizer.h"
#include "unicode.h"

namespace qc {
namespace {

/// Characters from `begin` to before `end`, and whether a pattern found them.
struct Span {
  size_t begin, end;
  bool matched;
};

std::vector<Span> spans_of(const std::vector<std::pair<size_t, size_t>>& found, size_t size,
                           bool inverted) {
  std::vector<Span> spans;
  size_t place = 0;
  for (const auto& [begin, end] : found) {
    if (place < begin) spans.push_back({place, begin, inverted});
    spans.push_back({begin, end, !inverted});
    place = end;
  }
  if (place < size) spans.push_back({place, size, inverted});
  return spans;
}

/// Join what was found with what stands before it.
std::vector<Span> merged_with_previous(const std::vector<Span>& spans) {
  std::vector<Span> merged;
  bool previous = false;
  for (const Span& span : spans) {
    if (span.matched && !previous && !merged.empty()) {
      merged.back().end = span.end;
    } else {
      merged.push_back(span);
    }
    previous = span.matched;
  }
  return merged;
}

/// Join what was found with what stands behind it.
std::vector<Span> merged_with_next(const std::vector<Span>& spans) {
  std::vector<Span> merged;  // from the last to the first
  bool previous = false;
  for (size_t i = spans.size(); i-- > 0;) {
    if (spans[i].matched && !previous && !merged.empty()) {
      merged.back().begin = spans[i].begin;
    } else {
      merged.push_back(spans[i]);
    }
    previous = spans[i].matched;
  }
  return {merged.rbegin(), merged.rend()};
}

/// Join what was found with what was found beside it, and likewise what was not.
std::vector<Span> contiguous(const std::vector<Span>& spans) {
  std::vector<Span> merged;
  for (const Span& span : spans) {
    if (!merged.empty() && merged.back().matched == span.matched) {
      merged.back().end = span.end;
    } else {
      merged.push_back(span);
    }
  }
  return merged;
}

}  // namespace

PreTokenizer::PreTokenizer(BinaryReader& file) {
  for (uint32_t count = file.number(); count > 0; --count) sets_.emplace_back(file);
  for (uint32_t count = file.number(); count > 0; --count) {
    Step step;
    step.kind = static_cast<Kind>(file.number());
    file.check(step.kind <= kMetaspace);
    if (step.kind == kSplit) {
      step.behaviour = file.number();
      step.inverted = file.number();
      file.check(step.behaviour <= kContiguous);
      step.pattern.emplace_back(file, sets_);
    } else if (step.kind == kMetaspace) {
      step.replacement = file.text();
      step.scheme = file.number();
      step.splits = file.number();
      file.check(!step.replacement.empty() && step.scheme <= kFirst);
    }
    steps_.push_back(std::move(step));
  }
}

std::vector<Piece> PreTokenizer::split(std::vector<Piece> pieces) const {
  for (const Step& step : steps_) {
    std::vector<Piece> next;
    for (Piece& piece : pieces) {
      if (piece.token >= 0) {
        next.push_back(std::move(piece));
      } else {
        apply(step, std::move(piece), next);
      }
    }
    pieces = std::move(next);
  }
  return pieces;
}

void PreTokenizer::apply(const Step& step, Piece piece, std::vector<Piece>& out) const {
  switch (step.kind) {
    case kSplit:
      split_by_pattern(step, piece, out);
      return;
    case kByteCharacters: {
      std::string text;
      for (char byte : piece.text) text += byte_characters()[static_cast<uint8_t>(byte)];
      piece.text = std::move(text);
      break;
    }
    case kPrefixSpace:
      if (!starts_with(piece.text, " ")) piece.text.insert(0, " ");
      break;
    case kMetaspace:
      split_metaspace(step, std::move(piece), out);
      return;
  }
  out.push_back(std::move(piece));
}

void PreTokenizer::split_by_pattern(const Step& step, const Piece& piece,
                                    std::vector<Piece>& out) const {
  const Characters characters(piece.text);
  std::vector<Span> spans = spans_of(step.pattern.front().find_all(characters.codes, sets_),
                                     characters.codes.size(), step.inverted != 0);
  if (step.behaviour == kMergedWithPrevious) spans = merged_with_previous(spans);
  if (step.behaviour == kMergedWithNext) spans = merged_with_next(spans);
  if (step.behaviour == kContiguous) spans = contiguous(spans);
  for (const Span& span : spans) {
    if (step.behaviour == kRemoved && span.matched) continue;
    const size_t begin = characters.places[span.begin];
    out.push_back({piece.text.substr(begin, characters.places[span.end] - begin),
                   piece.at_start && span.begin == 0});
  }
}

void PreTokenizer::split_metaspace(const Step& step, Piece piece, std::vector<Piece>& out) const {
  const std::string& mark = step.replacement;
  piece.text = replaced(piece.text, " ", mark);
  const bool wanted = step.scheme == kAlways || (step.scheme == kFirst && piece.at_start);
  if (wanted && !starts_with(piece.text, mark)) piece.text.insert(0, mark);
  if (step.splits == 0) {
    out.push_back(std::move(piece));
    return;
  }
  // Every mark begins a word.
  for (size_t begin = 0; begin < piece.text.size();) {
    const size_t end = std::min(piece.text.find(mark, begin + 1), piece.text.size());
    out.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
    begin = end;
  }
}

const std::vector<std::string>& byte_characters() {
  static const std::vector<std::string> table = [] {
    std::vector<std::string> made(256);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool seen = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                        (byte >= 0xAE && byte <= 0xFF);
      append(made[byte], seen ? byte : next++);
    }
    return made;
  }();
  return table;
}

int byte_of(uint32_t character) {
  static const std::unordered_map<uint32_t, int> table = [] {
    std::unordered_map<uint32_t, int> made;
    for (int byte = 0; byte < 256; ++byte) {
      size_t place = 0;
      made[next_character(byte_characters()[static_cast<size_t>(byte)], place)] = byte;
    }
    return made;
  }();
  const auto found = table.find(character);
  return found == table.end() ? -1 : found->second;
}

}  // namespace qc
