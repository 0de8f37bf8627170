// SHA-256 (FIPS 180-4), to find out whether a file is what it was.
#pragma once

#include <cstddef>
#include <string>

namespace qc {

/// Return the hash of some bytes, in hexadecimal.
std::string sha256(const void* data, size_t size);

}  // namespace qc
