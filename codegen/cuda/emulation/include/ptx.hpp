// Instructions of the PTX ISA as functions: results first, then operands, as they stand in the text.
#pragma once

namespace emulation {

inline float widen(unsigned short bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

inline unsigned short narrow(float value) {
  _Float16 half = static_cast<_Float16>(value);
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}

inline unsigned short half_of(int pair, int which) {
  return static_cast<unsigned short>(static_cast<unsigned>(pair) >> 16 * which);
}

}  // namespace emulation

inline void ptx_dp4a_s32_u32(int& d, int a, int b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<signed char>(a >> 8 * i) * static_cast<unsigned char>(b >> 8 * i);
  }
  d = c;
}

inline void ptx_cvt_f32_f16(float& d, unsigned short a) { d = emulation::widen(a); }
inline void ptx_cvt_rn_f16_f32(unsigned short& d, float a) { d = emulation::narrow(a); }
inline void ptx_cvt_rn_f16x2_f32(int& d, float high, float low) {
  d = static_cast<int>(static_cast<unsigned>(emulation::narrow(high)) << 16 | emulation::narrow(low));
}

inline void ptx_sub_rn_f16x2(int& d, int a, int b) {
  unsigned result = 0;
  for (int i = 0; i < 2; ++i) {
    // A difference of two float16 is exact in float32, so that this rounds once.
    float x = emulation::widen(emulation::half_of(a, i)) - emulation::widen(emulation::half_of(b, i));
    result |= static_cast<unsigned>(emulation::narrow(x)) << 16 * i;
  }
  d = static_cast<int>(result);
}

namespace emulation {

template <typename Sum>
struct Mma {
  int a[4], b[2];
  Sum c[4], d[4];
};

// Rows of A and D are 16, columns of B and D are 8. Each register of A and B holds `pack` numbers of
// consecutive k. Section "Matrix Fragments" of the PTX ISA:
//   A: register r of a lane is row lane / 4 + 8 (r % 2), k = (lane % 4) pack + 4 pack (r / 2) on
//   B: register r of a lane is column lane / 4, k = (lane % 4) pack + 4 pack r on
//   D: register r of a lane is row lane / 4 + 8 (r / 2), column 2 (lane % 4) + r % 2
template <typename Sum, int pack, typename Left, typename Right>
void mma(const char* what, Mma<Sum>& mine, Left left, Right right) {
  together(what, mine, [=](Mma<Sum>** all, unsigned) {
    Sum a[16][8 * pack], b[8 * pack][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < pack; ++i) {
        for (int r = 0; r < 4; ++r) {
          a[lane / 4 + 8 * (r % 2)][lane % 4 * pack + 4 * pack * (r / 2) + i] = left(all[lane]->a[r], i);
        }
        for (int r = 0; r < 2; ++r) {
          b[lane % 4 * pack + 4 * pack * r + i][lane / 4] = right(all[lane]->b[r], i);
        }
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int r = 0; r < 4; ++r) {
        int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
        Sum sum = all[lane]->c[r];
        for (int k = 0; k < 8 * pack; ++k) sum += a[row][k] * b[k][column];
        all[lane]->d[r] = sum;
      }
    }
  });
}

}  // namespace emulation

inline void ptx_mma_sync_aligned_m16n8k32_row_col_s32_s8_u8_s32(
    int& d0, int& d1, int& d2, int& d3, int a0, int a1, int a2, int a3, int b0, int b1, int c0, int c1,
    int c2, int c3) {
  emulation::Mma<int> mine{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}};
  emulation::mma<int, 4>(
      "mma.m16n8k32", mine, [](int r, int i) { return static_cast<signed char>(r >> 8 * i); },
      [](int r, int i) { return static_cast<unsigned char>(r >> 8 * i); });
  d0 = mine.d[0], d1 = mine.d[1], d2 = mine.d[2], d3 = mine.d[3];
}

inline void ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, int a0, int a1, int a2, int a3, int b0, int b1, float c0,
    float c1, float c2, float c3) {
  emulation::Mma<float> mine{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}};
  auto half = [](int r, int i) { return emulation::widen(emulation::half_of(r, i)); };
  emulation::mma<float, 2>("mma.m16n8k16", mine, half, half);
  d0 = mine.d[0], d1 = mine.d[1], d2 = mine.d[2], d3 = mine.d[3];
}
