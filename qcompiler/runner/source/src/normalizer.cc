#include "normalizer.h"

#include <algorithm>

#include "unicode.h"

namespace qc {
namespace {

// Syllables of Hangul are put together by arithmetic (Unicode, section 3.12).
constexpr uint32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr uint32_t kLeadingCount = 19, kVowelCount = 21, kTrailingCount = 28;
constexpr uint32_t kSyllableCount = kLeadingCount * kVowelCount * kTrailingCount;

}  // namespace

Composer::Composer(BinaryReader& file) {
  const Numbers rows = file.numbers();
  for (size_t place = 0; place < rows.size;) {
    const size_t count = rows[place];
    file.check(place + 2 + count <= rows.size);
    decompositions_[rows[place + 1]].assign(rows.data + place + 2, rows.data + place + 2 + count);
    place += 2 + count;
  }
  const Numbers pairs = file.rows(3);
  for (size_t i = 0; i < pairs.size; i += 3) {
    pairs_[uint64_t{pairs[i]} << 32 | pairs[i + 1]] = pairs[i + 2];
  }
  const Numbers classes = file.rows(2);
  for (size_t i = 0; i < classes.size; i += 2) classes_[classes[i]] = classes[i + 1];
}

void Composer::decompose(uint32_t c, std::vector<uint32_t>& out) const {
  if (c >= kSyllables && c < kSyllables + kSyllableCount) {
    const uint32_t index = c - kSyllables;
    out.push_back(kLeading + index / (kVowelCount * kTrailingCount));
    out.push_back(kVowels + index / kTrailingCount % kVowelCount);
    if (index % kTrailingCount != 0) out.push_back(kTrailing + index % kTrailingCount);
    return;
  }
  const auto found = decompositions_.find(c);
  if (found == decompositions_.end()) {
    out.push_back(c);
  } else {
    out.insert(out.end(), found->second.begin(), found->second.end());
  }
}

uint32_t Composer::combining_class(uint32_t c) const {
  const auto found = classes_.find(c);
  return found == classes_.end() ? 0 : found->second;
}

/// Return what two characters become; 0 if they stay two.
uint32_t Composer::pair(uint32_t first, uint32_t second) const {
  if (first >= kLeading && first < kLeading + kLeadingCount && second >= kVowels &&
      second < kVowels + kVowelCount) {
    return kSyllables +
           ((first - kLeading) * kVowelCount + (second - kVowels)) * kTrailingCount;
  }
  if (first >= kSyllables && first < kSyllables + kSyllableCount &&
      (first - kSyllables) % kTrailingCount == 0 && second > kTrailing &&
      second < kTrailing + kTrailingCount) {
    return first + (second - kTrailing);
  }
  const auto found = pairs_.find(uint64_t{first} << 32 | second);
  return found == pairs_.end() ? 0 : found->second;
}

std::string Composer::compose(std::string_view text) const {
  // Nothing below U+0300 is changed by what stands beside it, nor changes it.
  const Characters given(text);
  if (std::all_of(given.codes.begin(), given.codes.end(), [](uint32_t c) { return c < 0x300; })) {
    return std::string(text);
  }
  std::vector<uint32_t> codes;
  for (uint32_t c : given.codes) decompose(c, codes);
  // Marks between two characters of class 0 go by their classes.
  for (size_t begin = 0; begin < codes.size();) {
    size_t end = begin + 1;
    if (combining_class(codes[begin]) != 0) {
      while (end < codes.size() && combining_class(codes[end]) != 0) ++end;
      std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(begin),
                       codes.begin() + static_cast<std::ptrdiff_t>(end),
                       [&](uint32_t a, uint32_t b) {
                         return combining_class(a) < combining_class(b);
                       });
    }
    begin = end;
  }
  std::vector<uint32_t> out;
  size_t starter = codes.size();  // none yet
  for (uint32_t c : codes) {
    const uint32_t kind = combining_class(c);
    if (starter < out.size()) {
      const uint32_t last = combining_class(out.back());
      const bool beside = out.size() - 1 == starter;
      // A mark of the same class, or anything of class 0, stands in the way.
      const bool blocked = !beside && (last == 0 || last >= kind);
      const uint32_t made = blocked ? 0 : pair(out[starter], c);
      if (made != 0) {
        out[starter] = made;
        continue;
      }
    }
    if (kind == 0) starter = out.size();
    out.push_back(c);
  }
  std::string composed;
  for (uint32_t c : out) append(composed, c);
  return composed;
}

Normalizer::Normalizer(BinaryReader& file) {
  for (uint32_t count = file.number(); count > 0; --count) {
    Step step;
    step.kind = static_cast<Kind>(file.number());
    file.check(step.kind <= kCompose);
    if (step.kind != kCompose) step.first = file.text();
    if (step.kind == kReplace) {
      step.second = file.text();
      file.check(!step.first.empty());
    }
    if (step.kind == kCompose) composers_.emplace_back(file);
    steps_.push_back(std::move(step));
  }
}

std::string Normalizer::normalize(std::string text) const {
  for (const Step& step : steps_) {
    if (step.kind == kPrepend) {
      if (!text.empty()) text.insert(0, step.first);
    } else if (step.kind == kReplace) {
      text = replaced(text, step.first, step.second);
    } else {
      text = composers_.front().compose(text);
    }
  }
  return text;
}

std::string replaced(std::string_view text, std::string_view old, std::string_view by) {
  std::string result;
  size_t place = 0;
  for (size_t at; (at = text.find(old, place)) != std::string_view::npos; place = at + old.size()) {
    result.append(text, place, at - place).append(by);
  }
  return result.append(text, place);
}

}  // namespace qc
