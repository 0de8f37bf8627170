#include "sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <iterator>
#include <limits>
#include <random>
#include <string>

#include "error.h"

namespace qc {
namespace {

struct Candidate {
  int32_t token;
  double probability;
};

/// Return the place of the first of the largest numbers; -1 where it is not finite, or one is none.
///
/// By blocks, and within them by lanes, which compilers turn into vector instructions: a vocabulary
/// is looked through for every token.
template <typename T>
int32_t largest(const T* values, size_t count) {
  constexpr size_t kLanes = 16;
  constexpr size_t kBlock = 1024;
  T best = -std::numeric_limits<T>::infinity();
  size_t place = 0;
  bool fine = true;
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t end = std::min(begin + kBlock, count);
    std::array<T, kLanes> most;
    most.fill(-std::numeric_limits<T>::infinity());
    std::array<int, kLanes> wrong{};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const T value = values[i + lane];
        most[lane] = value > most[lane] ? value : most[lane];
        wrong[lane] |= value != value;
      }
    }
    for (; i < end; ++i) {
      most[0] = std::max(most[0], values[i]);
      wrong[0] |= values[i] != values[i];
    }
    const T here = *std::max_element(most.begin(), most.end());
    fine = fine && std::none_of(wrong.begin(), wrong.end(), [](int one) { return one != 0; });
    if (here > best) {
      best = here;
      place = begin;
    }
  }
  if (!fine || !std::isfinite(best)) return -1;
  return static_cast<int32_t>(std::find(values + place, values + count, best) - values);
}

int64_t chosen_seed(int64_t seed) { return seed >= 0 ? seed : int64_t{std::random_device{}()}; }

std::string written(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  if (!text.empty() && text.back() == '.') text.pop_back();
  return text;
}

void check(const qc_sampling& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    misuse("temperature is " + written(options.temperature) + "; give 0 or more");
  }
  if (options.top_k < 0) {
    misuse("top_k is " + std::to_string(options.top_k) + "; give a whole number from 1, or 0");
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    misuse("top_p is " + written(options.top_p) + "; give a number above 0, and at most 1");
  }
  if (!std::isfinite(options.repetition_penalty) || options.repetition_penalty <= 0) {
    misuse("repetition_penalty is " + written(options.repetition_penalty) +
           "; give a number above 0, for instance 1.1");
  }
}

/// Return the likeliest tokens that have `top_p` together; ties in the order of their numbers.
std::vector<Candidate> nucleus(const std::vector<Candidate>& all, double top_p) {
  // Tokens below this have less than 1 − top_p together, so none of them is in the nucleus.
  const double least = (1 - top_p) / static_cast<double>(all.size());
  std::vector<Candidate> kept;
  std::copy_if(all.begin(), all.end(), std::back_inserter(kept),
               [&](const Candidate& one) { return one.probability >= least; });
  std::stable_sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) {
    return a.probability > b.probability;
  });
  double total = 0;
  size_t count = 0;
  while (count < kept.size() && total < top_p * (1 - 1e-12)) total += kept[count++].probability;
  kept.resize(count);
  return kept;
}

}  // namespace

Sampler::Sampler(const qc_sampling& options, const std::vector<int32_t>& seen)
    : options_(options),
      seen_(seen.begin(), seen.end()),
      seed_(chosen_seed(options.seed)),
      random_(static_cast<uint64_t>(seed_)) {
  check(options);
}

int32_t Sampler::pick(const float* given, size_t vocab_size) {
  if (vocab_size == 0) misuse("there are no logits to pick from; give those of a vocabulary");
  const bool penalised = options_.repetition_penalty != 1 && !seen_.empty();
  int32_t token = 0;
  if (options_.temperature == 0 && !penalised) {
    token = largest(given, vocab_size);
  } else {
    std::vector<double> logits(given, given + vocab_size);
    for (int32_t seen : seen_) {
      if (!penalised || seen < 0 || static_cast<size_t>(seen) >= vocab_size) continue;
      double& value = logits[static_cast<size_t>(seen)];
      value = value > 0 ? value / options_.repetition_penalty : value * options_.repetition_penalty;
    }
    token = largest(logits.data(), logits.size());
    if (token >= 0 && options_.temperature != 0) token = draw(logits);
  }
  if (token < 0) fail("the model's logits are not finite numbers; compile it again");
  seen_.insert(token);
  return token;
}

/// Return a random token, each as often as its probability says.
int32_t Sampler::draw(const std::vector<double>& logits) {
  double limit = -INFINITY;
  const auto top_k = static_cast<size_t>(options_.top_k);
  if (top_k > 0 && top_k < logits.size()) {
    // Tokens that tie with the last of the `top_k` are all kept.
    std::vector<double> sorted = logits;
    const auto last = sorted.begin() + static_cast<std::ptrdiff_t>(top_k - 1);
    std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());
    limit = *last;
  }
  const double best = *std::max_element(logits.begin(), logits.end());
  std::vector<Candidate> candidates;
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] >= limit)) continue;
    const double weight = std::exp((logits[i] - best) / options_.temperature);
    candidates.push_back({static_cast<int32_t>(i), weight});
    sum += weight;
  }
  for (Candidate& one : candidates) one.probability /= sum;
  if (options_.top_p < 1) candidates = nucleus(candidates, options_.top_p);
  double total = 0;
  for (const Candidate& one : candidates) total += one.probability;
  const double wanted = random_.next() * total;
  double passed = 0;
  for (const Candidate& one : candidates) {
    passed += one.probability;
    if (passed > wanted) return one.token;
  }
  // The last sum is the total but for rounding; a number beyond it must not fall off the end.
  return candidates.back().token;
}

}  // namespace qc
