#include "workers.h"

#include <sched.h>

#include <algorithm>
#include <string>

#include "error.h"
#include "ffi.h"
#include "machine.h"

namespace qc {
namespace {

constexpr int kShareAll = -3;  // every thread may run on every processor it is given

thread_local int configured = 0;
thread_local int running = 0;

}  // namespace

Workers::Workers(int threads) {
  const Processors here = available_processors();
  processors_ = here.numbers;
  const int most = static_cast<int>(processors_.size());
  if (threads < 0 || threads > most) {
    misuse(std::to_string(threads) + " threads cannot be: this process may use " +
           std::to_string(most) + " processors");
  }
  count_ = threads == 0 ? here.worthwhile : threads;
}

int Workers::prepare() const {
  if (configured != count_) {
    // The call binds the calling thread too, which is not ours.
    cpu_set_t before;
    CPU_ZERO(&before);
    const bool known = sched_getaffinity(0, sizeof before, &before) == 0;
    // A pool cannot grow, so it is made with a thread for every processor, idle or not.
    std::vector<std::string> numbers;
    for (int processor : processors_) numbers.push_back(std::to_string(processor));
    ffi::call(ffi::global_function("runtime.config_threadpool"),
              {ffi::number(kShareAll), ffi::number(count_), ffi::array_of(numbers).argument()});
    if (known) sched_setaffinity(0, sizeof before, &before);
    running = static_cast<int>(
        ffi::call_for_number(ffi::global_function("runtime.NumThreads"), {}));
    configured = count_;
  }
  return std::min(count_, running);
}

}  // namespace qc
