// Numbers of 16 bits, rounded as the device rounds them.
#pragma once

using half = _Float16;
using __half = _Float16;
struct alignas(4) half2 { half x, y; };
using __half2 = half2;

inline float __half2float(half x) { return static_cast<float>(x); }
inline half __float2half(float x) { return static_cast<half>(x); }
inline half __float2half_rn(float x) { return static_cast<half>(x); }
inline half2 __float22half2_rn(float2 x) { return {static_cast<half>(x.x), static_cast<half>(x.y)}; }
inline float2 __half22float2(half2 x) { return {static_cast<float>(x.x), static_cast<float>(x.y)}; }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
