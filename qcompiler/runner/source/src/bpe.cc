#include "bpe.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <tuple>

#include "unicode.h"

namespace qc {
namespace {

constexpr uint32_t kNone = 0xFFFFFFFF;

}  // namespace

TokenTexts::TokenTexts(BinaryReader& file) : places_(file.numbers()) {
  texts_ = file.text();
  flags_ = file.numbers();
  bool fits = places_.size == flags_.size + 1 && places_[flags_.size] == texts_.size();
  for (size_t i = 0; fits && i < flags_.size; ++i) fits = places_[i] <= places_[i + 1];
  file.check(fits);
  for (uint32_t count = file.number(); count > 0; --count) {
    const size_t token = file.number();
    shown_[token] = file.text();
  }
}

Bpe::Bpe(BinaryReader& file)
    : unknown_(file.number()),
      fuse_unknown_(file.number() != 0),
      ignore_merges_(file.number() != 0),
      bytes_(file.numbers()),
      sorted_(file.numbers()),
      merges_(file.rows(4)),
      texts_(file) {
  bool fits = bytes_.size == 0 || bytes_.size == 256;
  for (size_t i = 0; i < sorted_.size; ++i) fits = fits && sorted_[i] < texts_.size();
  file.check(fits);
}

/// Return the token that is a text; -1 if none is.
int64_t Bpe::find(std::string_view text) const {
  const uint32_t* end = sorted_.data + sorted_.size;
  const uint32_t* found = std::lower_bound(
      sorted_.data, end, text,
      [&](uint32_t token, std::string_view wanted) { return texts_.text(token) < wanted; });
  return found != end && texts_.text(*found) == text ? int64_t{*found} : -1;
}

/// Return rank and result of merging two tokens; null if they do not merge.
const uint32_t* Bpe::merge(int32_t left, int32_t right) const {
  const auto wanted = std::tuple(static_cast<uint32_t>(left), static_cast<uint32_t>(right));
  size_t low = 0;
  size_t high = merges_.size / 4;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    const uint32_t* row = merges_.data + 4 * middle;
    const auto here = std::tuple(row[0], row[1]);
    if (here == wanted) return row + 2;
    if (here < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return nullptr;
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    if (const int64_t token = find(word); token >= 0) {
      out.push_back(static_cast<int32_t>(token));
      return;
    }
  }
  merge_all(characters(word), out);
}

/// Return the tokens of single characters, or of their bytes, or the unknown token.
std::vector<int32_t> Bpe::characters(std::string_view word) const {
  std::vector<int32_t> tokens;
  bool unknown = false;  // a token for what is unknown is to come
  for (size_t place = 0; place < word.size();) {
    const size_t begin = place;
    next_character(word, place);
    const std::string_view character = word.substr(begin, place - begin);
    if (const int64_t token = find(character); token >= 0) {
      if (unknown) tokens.push_back(static_cast<int32_t>(unknown_));
      unknown = false;
      tokens.push_back(static_cast<int32_t>(token));
      continue;
    }
    const auto is_token = [&](char byte) { return bytes_[static_cast<uint8_t>(byte)] != kNone; };
    if (bytes_.size != 0 && std::all_of(character.begin(), character.end(), is_token)) {
      for (char byte : character) {
        tokens.push_back(static_cast<int32_t>(bytes_[static_cast<uint8_t>(byte)]));
      }
      continue;
    }
    if (unknown_ == kNone) continue;
    if (unknown && !fuse_unknown_) tokens.push_back(static_cast<int32_t>(unknown_));
    unknown = true;
  }
  if (unknown) tokens.push_back(static_cast<int32_t>(unknown_));
  return tokens;
}

void Bpe::merge_all(const std::vector<int32_t>& word, std::vector<int32_t>& out) const {
  struct Symbol {
    int32_t token;
    int64_t previous, next;
    bool gone;
  };
  // The lowest rank first; of equal ones, the leftmost.
  using Candidate = std::tuple<uint32_t, int64_t, int32_t>;  // rank, place, result
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto count = static_cast<int64_t>(word.size());
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (int64_t i = 0; i < count; ++i) {
    symbols.push_back({word[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1, false});
  }
  const auto at = [&](int64_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto consider = [&](int64_t left) {
    if (left < 0 || at(left).next < 0) return;
    if (const uint32_t* found = merge(at(left).token, at(at(left).next).token)) {
      queue.emplace(found[0], left, static_cast<int32_t>(found[1]));
    }
  };
  for (int64_t i = 0; i + 1 < count; ++i) consider(i);
  while (!queue.empty()) {
    const auto [rank, place, token] = queue.top();
    queue.pop();
    Symbol& left = at(place);
    if (left.gone || left.next < 0) continue;
    Symbol& right = at(left.next);
    // What stands here may have changed since.
    const uint32_t* now = merge(left.token, right.token);
    if (now == nullptr || static_cast<int32_t>(now[1]) != token) continue;
    left.token = token;
    left.next = right.next;
    right.gone = true;
    if (left.next >= 0) at(left.next).previous = place;
    consider(left.previous);
    consider(place);
  }
  for (int64_t i = 0; i >= 0 && i < count; i = at(i).next) out.push_back(at(i).token);
}

}  // namespace qc
