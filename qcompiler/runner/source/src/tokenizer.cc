#include "tokenizer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "error.h"
#include "unicode.h"

namespace qc {
namespace {

constexpr char kMagic[16] = "qc-tokenizer\0\0\0";
constexpr uint32_t kTokenizerVersion = 1;

/// Return where the white space begins that a text ends with.
size_t spaces_at_end(std::string_view text) {
  size_t begin = 0;
  for (size_t place = 0; place < text.size();) {
    if (!is_space(next_character(text, place))) begin = place;
  }
  return begin;
}

/// Return how many bytes of white space a text begins with.
size_t spaces_at_start(std::string_view text) {
  size_t end = 0;
  for (size_t place = 0; place < text.size() && is_space(next_character(text, place));) {
    end = place;
  }
  return end;
}

}  // namespace

void AddedTokens::add(int64_t token, uint32_t flags, std::string text) {
  if (text.empty()) return;
  auto& same = by_first_byte_[static_cast<uint8_t>(text[0])];
  const auto longer = [&](const Added& other) { return other.text.size() >= text.size(); };
  const auto place = std::find_if_not(same.begin(), same.end(), longer);
  same.insert(place, {token, (flags & 2) != 0, (flags & 4) != 0, std::move(text)});
}

const AddedTokens::Added* AddedTokens::longest(std::string_view text) const {
  for (const Added& added : by_first_byte_[static_cast<uint8_t>(text[0])]) {
    if (starts_with(text, added.text)) return &added;
  }
  return nullptr;
}

void AddedTokens::split(const Piece& piece, std::vector<Piece>& out) const {
  const std::string_view text = piece.text;
  size_t done = 0;
  for (size_t place = 0; place < text.size();) {
    const Added* added = longest(text.substr(place));
    if (added == nullptr) {
      ++place;
      continue;
    }
    size_t begin = place;
    size_t end = place + added->text.size();
    place = end;
    // White space that the token before has taken is taken.
    if (added->left) begin = std::max(spaces_at_end(text.substr(0, begin)), done);
    if (added->right) end += spaces_at_start(text.substr(end));
    if (done < begin) {
      out.push_back({std::string(text.substr(done, begin - done)), piece.at_start && done == 0});
    }
    out.push_back({std::string(), false, added->token});
    done = end;
  }
  if (done < text.size()) {
    out.push_back({std::string(text.substr(done)), piece.at_start && done == 0});
  }
}

Tokenizer::Added::Added(BinaryReader& file) {
  for (uint32_t count = file.number(); count > 0; --count) {
    const uint32_t token = file.number();
    const uint32_t flags = file.number();
    ((flags & 1) != 0 ? normalized : plain).add(token, flags, std::string(file.text()));
  }
}

BinaryReader Tokenizer::opened(const FileMemory& file, const std::string& path) {
  if (file.size() < sizeof kMagic || std::memcmp(file.data(), kMagic, sizeof kMagic) != 0) {
    fail(path + " is damaged: it is no tokenizer; export the runner again");
  }
  BinaryReader reader(file.data() + sizeof kMagic, file.size() - sizeof kMagic, path);
  if (const uint32_t version = reader.number(); version != kTokenizerVersion) {
    fail(path + " has version " + std::to_string(version) + ", and this runner reads " +
         std::to_string(kTokenizerVersion) + "; export the runner again and build it anew");
  }
  return reader;
}

Tokenizer::Tokenizer(FileMemory file, const std::string& path)
    : file_(std::move(file)),
      reader_(opened(file_, path)),
      added_(reader_),
      normalizer_(reader_),
      pre_tokenizer_(reader_),
      model_(reader_),
      decoder_(reader_),
      before_(reader_.numbers()),
      behind_(reader_.numbers()) {}

std::vector<int32_t> Tokenizer::encode(const std::string& text, bool add_special) const {
  std::vector<Piece> found;
  added_.plain.split({text, true}, found);
  std::vector<Piece> pieces;
  for (Piece& piece : found) {
    if (piece.token < 0) {
      piece.text = normalizer_.normalize(std::move(piece.text));
      added_.normalized.split(piece, pieces);
    } else {
      pieces.push_back(std::move(piece));
    }
  }
  std::vector<int32_t> tokens;
  const auto put = [&](const Numbers& ids) {
    for (size_t i = 0; add_special && i < ids.size; ++i) {
      tokens.push_back(static_cast<int32_t>(ids[i]));
    }
  };
  put(before_);
  for (const Piece& piece : pre_tokenizer_.split(std::move(pieces))) {
    if (piece.token >= 0) {
      tokens.push_back(static_cast<int32_t>(piece.token));
    } else {
      model_.encode(piece.text, tokens);
    }
  }
  put(behind_);
  return tokens;
}

std::string Tokenizer::decode(const std::vector<int32_t>& tokens) const {
  std::vector<std::string> texts;
  const TokenTexts& known = model_.texts();
  for (int32_t token : tokens) {
    const auto number = static_cast<size_t>(token);
    if (token >= 0 && known.exists(number) && !known.is_special(number)) {
      texts.emplace_back(known.shown(number));
    }
  }
  return decoder_.decode(std::move(texts));
}

}  // namespace qc
