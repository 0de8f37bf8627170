#include "random.h"

#include <cstddef>

namespace qc {
namespace {

/// Spread a seed over 8 words (numpy's SeedSequence, after O'Neill's seed_seq_fe).
std::array<uint32_t, 8> spread(uint64_t seed) {
  uint32_t factor = 0x43B0D7E5;
  const auto hash = [&](uint32_t value) {
    value ^= factor;
    factor *= 0x931E8875;
    value *= factor;
    return value ^ value >> 16;
  };
  std::array<uint32_t, 4> pool = {hash(static_cast<uint32_t>(seed)),
                                  hash(static_cast<uint32_t>(seed >> 32)), hash(0), hash(0)};
  // In this order: the lambda counts.
  for (std::size_t from = 0; from < pool.size(); ++from) {
    for (std::size_t to = 0; to < pool.size(); ++to) {
      if (from == to) continue;
      const uint32_t mixed = 0xCA01F9DDu * pool[to] - 0x4973F715u * hash(pool[from]);
      pool[to] = mixed ^ mixed >> 16;
    }
  }
  std::array<uint32_t, 8> words{};
  factor = 0x8B51F9DD;
  for (std::size_t i = 0; i < words.size(); ++i) {
    uint32_t value = pool[i % pool.size()] ^ factor;
    factor *= 0x58F38DED;
    value *= factor;
    words[i] = value ^ value >> 16;
  }
  return words;
}

}  // namespace

Random::Random(uint64_t seed) {
  const std::array<uint32_t, 8> words = spread(seed);
  const auto pair = [&](std::size_t i) { return uint64_t{words[i + 1]} << 32 | words[i]; };
  const Wide first = Wide{pair(0)} << 64 | pair(2);
  const Wide sequence = Wide{pair(4)} << 64 | pair(6);
  increment_ = sequence << 1 | 1;
  step();
  state_ += first;
  step();
}

void Random::step() {
  constexpr Wide factor = Wide{0x2360ED051FC65DA4} << 64 | 0x4385DF649FCCF645;
  state_ = state_ * factor + increment_;
}

double Random::next() {
  step();
  const auto both = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  const auto turn = static_cast<int>(state_ >> 122);
  const uint64_t bits = both >> turn | both << (-turn & 63);
  return static_cast<double>(bits >> 11) * (1.0 / 9007199254740992.0);
}

}  // namespace qc
