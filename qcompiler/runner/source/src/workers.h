// The threads that compiled functions run on.
#pragma once

#include <vector>

namespace qc {

/// A number of threads, the calling one included.
///
/// TVM keeps a pool of threads for every thread that calls it, and left alone gives it half the
/// processors of a machine and binds each to one. Here they are free to move.
class Workers {
 public:
  /// Take so many threads, or for 0 one for each core this process may use.
  explicit Workers(int threads);

  int count() const { return count_; }

  /// Give the calling thread's pool this number of threads; call it before every function. Returns
  /// how many there are: a function that waits for more would wait for ever.
  int prepare() const;

 private:
  std::vector<int> processors_;
  int count_ = 1;
};

}  // namespace qc
