// Memory that kernels can use: files, and zeros at the border of a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace qc {

/// Bytes: a cache line, and the widest vector register there is.
constexpr size_t kAlignment = 64;

/// A file in memory, as long as this object is there.
class FileMemory {
 public:
  FileMemory() = default;
  FileMemory(FileMemory&& other) noexcept;
  FileMemory& operator=(FileMemory&& other) noexcept;
  ~FileMemory();

  /// Leave the bytes in the file's own pages.
  static FileMemory map(const std::string& path);
  /// Read the bytes to pages of 2 MB where the system has them, which are faster to stream.
  static FileMemory read(const std::string& path);

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* region_ = nullptr;
  size_t region_bytes_ = 0;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

/// Zeros that begin at a multiple of `kAlignment`; pages are taken when they are first written to.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  uint8_t* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void* raw_ = nullptr;
  uint8_t* data_ = nullptr;
};

}  // namespace qc
