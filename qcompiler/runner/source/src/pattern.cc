#include "pattern.h"

namespace qc {

CharacterSet::CharacterSet(BinaryReader& file) : ranges_(file.rows(2)) {
  for (uint32_t c = 0; c < ascii_.size(); ++c) ascii_[c] = has_beyond(c);
}

bool CharacterSet::has_beyond(uint32_t character) const {
  size_t low = 0;
  size_t high = ranges_.size / 2;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (character > ranges_[2 * middle + 1]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < ranges_.size / 2 && character >= ranges_[2 * low];
}

struct Pattern::Search {
  const std::vector<uint32_t>& text;
  const std::vector<CharacterSet>& sets;
};

Pattern::Pattern(BinaryReader& file, const std::vector<CharacterSet>& sets) : code_(file.rows(3)) {
  const size_t count = code_.size / 3;
  file.check(count > 0 && code_[3 * (count - 1)] == kMatch);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t op = code_[3 * i];
    const uint32_t first = code_[3 * i + 1];
    const uint32_t second = code_[3 * i + 2];
    const bool fits = op == kMatch  ? true
                      : op == kSet  ? first < sets.size()
                      : op == kJump ? first < count
                      : op == kSplit ? first < count && second < count
                                     : op <= kAtomic && second < count;
    file.check(fits);
  }
}

std::optional<size_t> Pattern::match(const Search& search, size_t op, size_t at) const {
  std::vector<std::pair<size_t, size_t>> untried;  // instruction and place to go back to
  for (;;) {
    const uint32_t first = code_[3 * op + 1];
    const uint32_t second = code_[3 * op + 2];
    bool failed = false;
    switch (code_[3 * op]) {
      case kMatch:
        return at;
      case kSet:
        failed = at >= search.text.size() || !search.sets[first].has(search.text[at]);
        ++at, ++op;
        break;
      case kSplit:
        untried.emplace_back(second, at);
        op = first;
        break;
      case kJump:
        op = first;
        break;
      case kAhead:
        failed = match(search, op + 1, at).has_value() != (first != 0);
        op = second;
        break;
      default: {  // kAtomic
        const std::optional<size_t> end = match(search, op + 1, at);
        failed = !end.has_value();
        at = end.value_or(at);
        op = second;
      }
    }
    if (!failed) continue;
    if (untried.empty()) return std::nullopt;
    op = untried.back().first;
    at = untried.back().second;
    untried.pop_back();
  }
}

std::vector<std::pair<size_t, size_t>> Pattern::find_all(
    const std::vector<uint32_t>& text, const std::vector<CharacterSet>& sets) const {
  const Search search{text, sets};
  std::vector<std::pair<size_t, size_t>> found;
  for (size_t at = 0; at < text.size();) {
    const std::optional<size_t> end = match(search, 0, at);
    if (end.has_value() && *end > at) {
      found.emplace_back(at, *end);
      at = *end;
    } else {
      ++at;
    }
  }
  return found;
}

}  // namespace qc
