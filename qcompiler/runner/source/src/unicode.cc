#include "unicode.h"

#include <algorithm>

namespace qc {
namespace {

constexpr uint32_t kReplacement = 0xFFFD;

struct Found {
  uint32_t code;
  size_t bytes;
  bool valid;
};

/// Return the character at a place. Where there is none, `bytes` are as many as could have begun
/// one, as Unicode advises (section 3.9, "maximal subparts").
Found look(std::string_view text, size_t place) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(place);
  if (first < 0x80) return {first, 1, true};
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4) return {kReplacement, 1, false};
  uint32_t code = first & (0xFFu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    // The second byte tells overlong forms, surrogates and what lies beyond the last character.
    const uint8_t low = i > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = i > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (place + i >= text.size() || byte(place + i) < low || byte(place + i) > high) {
      return {kReplacement, i, false};
    }
    code = code << 6 | (byte(place + i) & 0x3F);
  }
  return {code, bytes, true};
}

}  // namespace

void append(std::string& text, uint32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xC0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    text += static_cast<char>(0xE0 | c >> 12);
    text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | c >> 18);
    text += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
}

uint32_t next_character(std::string_view text, size_t& place) {
  const Found found = look(text, place);
  place += found.bytes;
  return found.code;
}

Characters::Characters(std::string_view text) {
  codes.reserve(text.size());
  places.reserve(text.size() + 1);
  for (size_t place = 0; place < text.size();) {
    places.push_back(place);
    codes.push_back(next_character(text, place));
  }
  places.push_back(text.size());
}

bool is_utf8(std::string_view text) {
  for (size_t place = 0; place < text.size();) {
    const Found found = look(text, place);
    if (!found.valid) return false;
    place += found.bytes;
  }
  return true;
}

std::string repaired(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (size_t place = 0; place < bytes.size();) append(text, next_character(bytes, place));
  return text;
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string stripped(std::string_view text) {
  size_t begin = text.size();
  size_t end = 0;
  for (size_t place = 0; place < text.size();) {
    const size_t start = place;
    const uint32_t c = next_character(text, place);
    // Python takes the four separators of ASCII for white space as well.
    if (is_space(c) || (c >= 0x1C && c <= 0x1F)) continue;
    begin = std::min(begin, start);
    end = place;
  }
  return begin < end ? std::string(text.substr(begin, end - begin)) : std::string();
}

bool starts_with(std::string_view text, std::string_view beginning) {
  return text.substr(0, beginning.size()) == beginning;
}

}  // namespace qc
