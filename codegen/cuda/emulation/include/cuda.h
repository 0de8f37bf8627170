// What of CUDA C++ the kernels use, in plain C++.
#pragma once

#include <algorithm>
#include <cmath>

#include "emulation.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) alignas(n)

#define threadIdx (emulation::thread_place())
#define blockIdx (emulation::block_place)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

#define QC_VECTORS(type, name, align2, align4)                                       \
  struct alignas(align2) name##2 { type x, y; };                                     \
  struct name##3 { type x, y, z; };                                                  \
  struct alignas(align4) name##4 { type x, y, z, w; };                               \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                   \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }        \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
QC_VECTORS(signed char, char, 2, 4)
QC_VECTORS(unsigned char, uchar, 2, 4)
QC_VECTORS(short, short, 4, 8)
QC_VECTORS(unsigned short, ushort, 4, 8)
QC_VECTORS(int, int, 8, 16)
QC_VECTORS(float, float, 8, 16)
QC_VECTORS(long long, longlong, 16, 32)
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline int64_t max(int64_t a, int b) { return a > b ? a : b; }
inline int64_t max(int a, int64_t b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int b) { return a < b ? a : b; }
inline int64_t min(int a, int64_t b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline float __int_as_float(int bits) { float x; memcpy(&x, &bits, 4); return x; }
inline int __float_as_int(float x) { int bits; memcpy(&bits, &x, 4); return bits; }

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned pick = selector >> 4 * i & 15;
    unsigned byte = both >> 8 * (pick & 7) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

// -- threads that meet --------------------------------------------------------------------------

inline void __syncthreads() { emulation::meet(emulation::barrier, "syncthreads"); }

inline void __syncwarp(unsigned = 0xFFFFFFFFu) {
  int nothing = 0;
  emulation::together("syncwarp", nothing, [](int**, unsigned) {});
}

namespace emulation {
template <typename T>
struct Shuffle {
  T value, result;
  unsigned source;
};

template <typename T>
T shuffle(const char* what, T value, unsigned source) {
  Shuffle<T> mine{value, value, source};
  together(what, mine, [](Shuffle<T>** all, unsigned lanes) {
    for (unsigned i = 0; i < lanes; ++i) {
      if (all[i]->source < lanes) all[i]->result = all[all[i]->source]->value;
    }
  });
  return mine.result;
}
}  // namespace emulation

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulation::shuffle("shfl.xor", value, emulation::lane() ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  unsigned lane = emulation::lane();
  return emulation::shuffle("shfl.down", value, lane % width + delta < unsigned(width) ? lane + delta : lane);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  unsigned lane = emulation::lane();
  return emulation::shuffle("shfl.up", value, lane % width >= delta ? lane - delta : lane);
}
template <typename T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
  unsigned lane = emulation::lane();
  return emulation::shuffle("shfl.idx", value, lane / width * width + source % width);
}
inline unsigned __activemask() { return 0xFFFFFFFFu; }

#include "ptx.hpp"
