// Numbers and texts of a file in memory; whatever lies outside of it is an error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "error.h"

namespace qc {

/// Numbers that lie in a file, of 32 bits each.
struct Numbers {
  const uint32_t* data = nullptr;
  size_t size = 0;
  uint32_t operator[](size_t i) const { return data[i]; }
};

class BinaryReader {
 public:
  /// `path` is for errors. The memory begins at a multiple of 4 and outlives what is read.
  BinaryReader(const uint8_t* data, size_t size, std::string path)
      : data_(data), size_(size), path_(std::move(path)) {}

  uint32_t number() { return *take(1).data; }
  /// As many numbers as the first of them says, `width` in each row.
  Numbers rows(size_t width) { return take(size_t{number()} * width); }
  Numbers numbers() { return rows(1); }
  std::string_view text() {
    const size_t bytes = number();
    const Numbers words = take((bytes + 3) / 4);
    return {reinterpret_cast<const char*>(words.data), bytes};
  }
  [[noreturn]] void damaged() const {
    fail(path_ + " is damaged: its parts do not fit together; export the runner again");
  }
  void check(bool fine) const {
    if (!fine) damaged();
  }

 private:
  Numbers take(size_t count) {
    if (count > (size_ - place_) / 4) damaged();
    const auto* begin = reinterpret_cast<const uint32_t*>(data_ + place_);
    place_ += 4 * count;
    return {begin, count};
  }

  const uint8_t* data_;
  size_t size_;
  size_t place_ = 0;
  std::string path_;
};

}  // namespace qc
