#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "error.h"

namespace qc {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kReadAtOnce = size_t{16} << 20;

/// An open file, closed at the end of a scope.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : path_(path) {
    number_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (number_ < 0 && errno == ENOENT) fail(path + " is missing; export the runner again");
    struct stat facts {};
    if (number_ < 0 || fstat(number_, &facts) != 0) refuse();
    if (!S_ISREG(facts.st_mode)) fail(path + " is no file; export the runner again");
    size_ = static_cast<size_t>(facts.st_size);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  [[noreturn]] void refuse() const { fail(path_ + " cannot be read: " + std::strerror(errno)); }

  int number() const { return number_; }
  size_t size() const { return size_; }

 private:
  std::string path_;
  int number_ = -1;
  size_t size_ = 0;
};

}  // namespace

FileMemory::FileMemory(FileMemory&& other) noexcept { *this = std::move(other); }

FileMemory& FileMemory::operator=(FileMemory&& other) noexcept {
  std::swap(region_, other.region_);
  std::swap(region_bytes_, other.region_bytes_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

FileMemory::~FileMemory() {
  if (region_ != nullptr) munmap(region_, region_bytes_);
}

FileMemory FileMemory::map(const std::string& path) {
  const Descriptor file(path);
  FileMemory memory;
  if (file.size() == 0) return memory;
  void* region = mmap(nullptr, file.size(), PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (region == MAP_FAILED) file.refuse();
  memory.region_ = region;
  memory.region_bytes_ = memory.size_ = file.size();
  memory.data_ = static_cast<uint8_t*>(region);
  return memory;
}

FileMemory FileMemory::read(const std::string& path) {
  const Descriptor file(path);
  FileMemory memory;
  const size_t bytes = file.size() + kHugePage;
  void* region =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) fail("there is not enough memory for " + path);
  memory.region_ = region;
  memory.region_bytes_ = bytes;
  // Large pages are a wish: a system without them has small ones.
  (void)madvise(region, bytes, MADV_HUGEPAGE);
  const size_t gap = (kHugePage - reinterpret_cast<uintptr_t>(region) % kHugePage) % kHugePage;
  memory.data_ = static_cast<uint8_t*>(region) + gap;
  while (memory.size_ < file.size()) {
    const size_t wanted = std::min(kReadAtOnce, file.size() - memory.size_);
    const ssize_t count = ::read(file.number(), memory.data_ + memory.size_, wanted);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) file.refuse();
    if (count == 0) fail(path + " is damaged: it ends too early; export the runner again");
    memory.size_ += static_cast<size_t>(count);
  }
  return memory;
}

Buffer::Buffer(size_t bytes) : raw_(std::calloc(bytes + kAlignment, 1)) {
  if (raw_ == nullptr) throw std::bad_alloc();
  const size_t gap = kAlignment - reinterpret_cast<uintptr_t>(raw_) % kAlignment;
  data_ = static_cast<uint8_t*>(raw_) + gap;
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(raw_, other.raw_);
  std::swap(data_, other.data_);
  return *this;
}

Buffer::~Buffer() { std::free(raw_); }

}  // namespace qc
