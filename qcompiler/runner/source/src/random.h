// The random numbers of numpy.random.default_rng(seed), so that a seed means the same here.
#pragma once

#include <array>
#include <cstdint>

namespace qc {

/// PCG64 (O'Neill 2014, XSL-RR), seeded as numpy's SeedSequence does.
class Random {
 public:
  explicit Random(uint64_t seed);
  /// Return a number from 0 to below 1, of 53 random bits.
  double next();

 private:
  __extension__ typedef unsigned __int128 Wide;
  void step();

  Wide state_ = 0;
  Wide increment_ = 0;
};

}  // namespace qc
