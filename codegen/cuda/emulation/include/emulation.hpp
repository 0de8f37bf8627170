// Runs a CUDA kernel on the host: every thread of a block is a fiber, blocks run one after the other.
//
// A fiber runs until it has to wait for others, at a barrier or in an instruction that a warp executes
// together. A wait that can never end, because threads have taken different ways, is an error. Blocks
// alternate between the two orders of threads, so that a missing barrier shows.
//
// For x86-64 Linux. One launch runs at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <sys/mman.h>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10;

extern "C" void qc_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden qc_switch
.globl qc_switch
.type qc_switch, @function
qc_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qc_switch, .-qc_switch
)");

// Threads that meet: the last to come lets all go on.
struct Meeting {
  unsigned expected = 0, arrived = 0, generation = 0;
  const char* what = nullptr;
};

struct Thread {
  void* at = nullptr;  // its stack pointer while it does not run
  const Meeting* waits = nullptr;
  unsigned generation = 0;
  bool done = false;
};

struct Warp {
  Meeting meeting;
  void* operands[kWarp];
};

inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline Meeting barrier;
inline void* scheduler;
inline unsigned current, alive;
inline bool advanced;
inline std::string problem;
inline void (*body)(void**);
inline void** arguments;
inline uint3 block_place;
inline dim3 block_size, grid_size;

inline void leave() { qc_switch(&threads[current].at, scheduler); }

[[noreturn]] inline void fail(const std::string& text) {
  if (problem.empty()) problem = text;
  leave();
  abort();  // nothing goes on after a problem
}

inline bool arrive(Meeting& meeting, const char* what) {
  if (meeting.arrived && strcmp(meeting.what, what)) {
    fail(std::string("threads meet in ") + meeting.what + " and in " + what);
  }
  meeting.what = what;
  advanced = true;
  if (++meeting.arrived < meeting.expected) return false;
  meeting.arrived = 0;
  ++meeting.generation;
  return true;
}

inline void wait(const Meeting& meeting, unsigned generation) {
  threads[current].waits = &meeting;
  threads[current].generation = generation;
  leave();
  threads[current].waits = nullptr;
}

inline void meet(Meeting& meeting, const char* what) {
  unsigned generation = meeting.generation;
  if (!arrive(meeting, what)) wait(meeting, generation);
}

inline unsigned lane() { return current % kWarp; }

// All threads of a warp call this; the last one computes for all from the operands of each.
template <typename Operands, typename Compute>
void together(const char* what, Operands& mine, Compute compute) {
  Warp& warp = warps[current / kWarp];
  warp.operands[lane()] = &mine;
  unsigned generation = warp.meeting.generation;
  unsigned lanes = warp.meeting.expected;
  if (warp.meeting.arrived + 1 == lanes) {
    Operands* all[kWarp];
    for (unsigned i = 0; i < lanes; ++i) all[i] = static_cast<Operands*>(warp.operands[i]);
    if (lanes == kWarp || !strncmp(what, "shfl", 4) || !strcmp(what, "syncwarp")) {
      compute(all, lanes);
    } else {
      fail(std::string(what) + " in a warp that is not whole");
    }
  }
  if (!arrive(warp.meeting, what)) wait(warp.meeting, generation);
}

inline void enter() {
  body(arguments);
  threads[current].done = true;
  --alive;
  advanced = true;
  leave();
  abort();
}

inline char* stacks(unsigned count) {
  static char* memory = nullptr;
  static unsigned room = 0;
  if (count > room) {
    if (memory) munmap(memory, room * kStack);
    memory = static_cast<char*>(mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) abort();
    room = count;
  }
  return memory;
}

inline void run_block(unsigned count, bool backwards) {
  char* memory = stacks(count);
  threads.assign(count, Thread());
  warps.assign((count + kWarp - 1) / kWarp, Warp());
  for (unsigned i = 0; i < warps.size(); ++i) {
    warps[i].meeting.expected = std::min<unsigned>(kWarp, count - i * kWarp);
  }
  barrier = Meeting();
  barrier.expected = alive = count;
  for (unsigned i = 0; i < count; ++i) {
    void** top = reinterpret_cast<void**>(memory + (i + 1) * kStack - 64);
    *--top = nullptr;                             // the stack is as after a call
    *--top = reinterpret_cast<void*>(&enter);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    threads[i].at = top;
  }
  while (alive && problem.empty()) {
    advanced = false;
    for (unsigned step = 0; step < count && problem.empty(); ++step) {
      current = backwards ? count - 1 - step : step;
      Thread& thread = threads[current];
      if (thread.done || (thread.waits && thread.waits->generation == thread.generation)) continue;
      qc_switch(&scheduler, thread.at);
    }
    if (!advanced && alive && problem.empty()) {
      for (const Thread& thread : threads) {
        if (thread.waits) {
          problem = std::string("threads wait for ever in ") + thread.waits->what;
          break;
        }
      }
    }
  }
}

// Returns what went wrong, or nothing.
inline const char* run(void (*kernel)(void**), const unsigned* grid, const unsigned* block,
                       void** given) {
  problem.clear();
  body = kernel;
  arguments = given;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  unsigned count = block[0] * block[1] * block[2];
  unsigned long done = 0;
  for (block_place.z = 0; block_place.z < grid[2]; ++block_place.z) {
    for (block_place.y = 0; block_place.y < grid[1]; ++block_place.y) {
      for (block_place.x = 0; block_place.x < grid[0]; ++block_place.x) {
        run_block(count, done++ % 2);
        if (!problem.empty()) return problem.c_str();
      }
    }
  }
  return nullptr;
}

inline uint3 thread_place() {
  return {current % block_size.x, current / block_size.x % block_size.y,
          current / (block_size.x * block_size.y)};
}

}  // namespace emulation
