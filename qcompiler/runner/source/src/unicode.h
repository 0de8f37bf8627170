// UTF-8, and what counts as white space.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qc {

/// Append a character.
void append(std::string& text, uint32_t character);

/// Return the character that begins at `place` and move on; a byte that is none stands for U+FFFD.
uint32_t next_character(std::string_view text, size_t& place);

/// The characters of a text, and the byte that each begins at; behind them the text's size.
struct Characters {
  explicit Characters(std::string_view text);
  std::vector<uint32_t> codes;
  std::vector<size_t> places;
};

bool is_utf8(std::string_view text);

/// Return a text in which U+FFFD stands for every run of bytes that are no character.
std::string repaired(std::string_view bytes);

/// Whether a character has Unicode's property White_Space.
bool is_space(uint32_t character);

/// Return a text without the white space around it, as Python's str.strip.
std::string stripped(std::string_view text);

bool starts_with(std::string_view text, std::string_view beginning);

}  // namespace qc
