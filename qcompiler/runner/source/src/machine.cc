#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "error.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace qc {
namespace {

using Words = std::set<std::string>;

#if defined(__aarch64__)

/// What the kernel tells every process. Linux's own list is another machine's under an emulator.
Words instruction_sets() {
  struct Bit {
    const char* name;
    unsigned long type;
    int bit;
  };
  static constexpr Bit bits[] = {
      {"fp", AT_HWCAP, 0},       {"asimd", AT_HWCAP, 1},    {"aes", AT_HWCAP, 3},
      {"sha2", AT_HWCAP, 6},     {"crc32", AT_HWCAP, 7},    {"atomics", AT_HWCAP, 8},
      {"fphp", AT_HWCAP, 9},     {"asimdhp", AT_HWCAP, 10}, {"asimdrdm", AT_HWCAP, 12},
      {"jscvt", AT_HWCAP, 13},   {"fcma", AT_HWCAP, 14},    {"lrcpc", AT_HWCAP, 15},
      {"dcpop", AT_HWCAP, 16},   {"asimddp", AT_HWCAP, 20}, {"sve", AT_HWCAP, 22},
      {"asimdfhm", AT_HWCAP, 23}, {"sve2", AT_HWCAP2, 1},   {"svei8mm", AT_HWCAP2, 9},
      {"svebf16", AT_HWCAP2, 12}, {"i8mm", AT_HWCAP2, 13},  {"bf16", AT_HWCAP2, 14}};
  Words found;
  for (const Bit& bit : bits) {
    if (getauxval(bit.type) >> bit.bit & 1) found.insert(bit.name);
  }
  return found;
}

#else

/// What all processors have: those of one machine can differ, and a thread can move to any.
Words instruction_sets() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  Words common;
  bool any = false;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    const std::string key = line.substr(0, line.find_first_of("\t :"));
    if (colon == std::string::npos || (key != "flags" && key != "Features" && key != "isa")) {
      continue;
    }
    std::istringstream values(line.substr(colon + 1));
    Words found;
    for (std::string word; values >> word;) found.insert(word);
    if (any) {
      Words both;
      std::set_intersection(common.begin(), common.end(), found.begin(), found.end(),
                            std::inserter(both, both.begin()));
      found = both;
    }
    common = found;
    any = true;
  }
  return common;
}

#endif

/// Return what a file says first; empty where it cannot be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// Return the processors that a container's quota amounts to, rounded up; 0 where there is none.
int quota() {
  std::istringstream both(first_line("/sys/fs/cgroup/cpu.max"));
  double time = 0;
  double period = 0;
  if (!(both >> time >> period)) {
    std::istringstream(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")) >> time;
    std::istringstream(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us")) >> period;
  }
  return time > 0 && period > 0 ? static_cast<int>(std::ceil(time / period)) : 0;
}

}  // namespace

void check_machine(const Artifact& artifact) {
  struct utsname names {};
  uname(&names);
  const std::string machine = names.machine;
  const std::string advice = "; compile the model for this machine and export it again";
  if (artifact.arch != machine) {
    fail("the artifact is compiled for " + artifact.target + " (" + artifact.arch +
         "), and this machine is " + machine + advice);
  }
  const Words here = instruction_sets();
  std::string lacking;
  for (const std::string& feature : artifact.features) {
    if (here.count(feature) == 0) lacking += (lacking.empty() ? "" : ", ") + feature;
  }
  if (!lacking.empty()) {
    fail("the artifact is compiled for " + artifact.target + ", and this machine lacks " +
         lacking + advice);
  }
}

Processors available_processors() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  Processors processors;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) CPU_SET(0, &allowed);
  std::set<std::string> cores;
  std::vector<int> others;
  for (int number = 0; number < CPU_SETSIZE; ++number) {
    if (!CPU_ISSET(number, &allowed)) continue;
    std::string core = first_line("/sys/devices/system/cpu/cpu" + std::to_string(number) +
                                  "/topology/thread_siblings_list");
    if (core.empty()) core = std::to_string(number);
    (cores.insert(core).second ? processors.numbers : others).push_back(number);
  }
  const int first = static_cast<int>(processors.numbers.size());
  const int limit = quota();
  processors.worthwhile = std::max(1, limit == 0 ? first : std::min(first, limit));
  processors.numbers.insert(processors.numbers.end(), others.begin(), others.end());
  return processors;
}

}  // namespace qc
