// Each matrix instruction against the PTX manual's tables, written here as the manual writes them
// (element by element), and number formats and Philox against independent definitions.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "device/dtype.h"
#include "device/mma.h"
#include "device/philox.h"
#include "device/shared.h"
#include "device/thread.h"
#include "device/tile.h"
#include "simt/half.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::grid;

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": element i of a lane's
// fragment.
struct Place {
  int row;
  int column;
};

Place a_place(int lane, int i) {
  const int group_id = lane >> 2, thread_in_group = lane % 4;
  const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper ? group_id : group_id + 8,
          i < 4 ? thread_in_group * 2 + (i & 1) : thread_in_group * 2 + (i & 1) + 8};
}

Place b_place(int lane, int i) {
  const int group_id = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? thread_in_group * 2 + (i & 1) : thread_in_group * 2 + (i & 1) + 8, group_id};
}

Place c_place(int lane, int i) {
  const int group_id = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? group_id : group_id + 8, thread_in_group * 2 + (i & 1)};
}

TEST(the_manuals_fragments_cover_each_matrix_once) {
  int a[16][16] = {}, b[16][8] = {}, c[16][8] = {};
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) ++a[a_place(lane, i).row][a_place(lane, i).column];
    for (int i = 0; i < 4; ++i) ++b[b_place(lane, i).row][b_place(lane, i).column];
    for (int i = 0; i < 4; ++i) ++c[c_place(lane, i).row][c_place(lane, i).column];
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) CHECK_EQUAL(a[row][column], 1);
    for (int column = 0; column < 8; ++column) CHECK(b[row][column] == 1 && c[row][column] == 1);
  }
}

// Small integers are exact in both formats, and so is the product: any misplaced element shows.
template <class T>
void check_mma(uint32_t seed) {
  std::mt19937 random(seed);
  float a[16][16], b[16][8], c[16][8];
  const auto draw = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
  for (auto& row : a) std::generate(row, row + 16, draw);
  for (auto& row : b) std::generate(row, row + 8, draw);
  for (auto& row : c) std::generate(row, row + 8, draw);
  float result[16][8];
  simt::launch(grid(1, 32), [&] {
    const int lane = device::lane_index();
    uint32_t a_frag[4], b_frag[2];
    float d_frag[4];
    for (int i = 0; i < 8; i += 2) {
      const Place low = a_place(lane, i), high = a_place(lane, i + 1);
      a_frag[i / 2] = device::pack<T>(a[low.row][low.column], a[high.row][high.column]);
    }
    for (int i = 0; i < 4; i += 2) {
      const Place low = b_place(lane, i), high = b_place(lane, i + 1);
      b_frag[i / 2] = device::pack<T>(b[low.row][low.column], b[high.row][high.column]);
    }
    for (int i = 0; i < 4; ++i) d_frag[i] = c[c_place(lane, i).row][c_place(lane, i).column];
    device::mma_m16n8k16<T>(d_frag, a_frag, b_frag);
    for (int i = 0; i < 4; ++i) result[c_place(lane, i).row][c_place(lane, i).column] = d_frag[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = c[row][column];
      for (int k = 0; k < 16; ++k) expected += a[row][k] * b[k][column];
      CHECK_EQUAL(result[row][column], expected);
    }
  }
}

TEST(mma_float16_follows_the_manuals_lane_map) {
  for (uint32_t seed = 1; seed <= 20; ++seed) check_mma<device::float16>(seed);
}

TEST(mma_bfloat16_follows_the_manuals_lane_map) {
  for (uint32_t seed = 1; seed <= 20; ++seed) check_mma<device::bfloat16>(seed);
}

// Element (row, column) of matrix m holds m·64 + row·8 + column. The manual: lanes 8m … 8m+7 name
// the rows of matrix m, and lane l receives row l / 4, elements l % 4 · 2 and the next; transposed,
// the roles of row and column are exchanged.
template <int kCount>
void check_ldmatrix(bool transposed) {
  simt::launch(grid(1, 32, kCount * 64 * 2), [&] {
    const int lane = device::lane_index();
    auto* shared = device::dynamic_shared<uint16_t>();
    for (int i = lane; i < kCount * 64; i += 32)
      device::shared_store(&shared[i], static_cast<uint16_t>(i));
    device::sync_warp();
    uint32_t registers[kCount];
    const uint16_t* row = &shared[lane % (kCount * 8) * 8];
    if (transposed) {
      device::ldmatrix_trans(registers, row);
    } else {
      device::ldmatrix(registers, row);
    }
    for (int matrix = 0; matrix < kCount; ++matrix) {
      const int major = lane / 4, minor = lane % 4 * 2;
      const int low = transposed ? minor * 8 + major : major * 8 + minor;
      const int high = transposed ? (minor + 1) * 8 + major : major * 8 + minor + 1;
      const uint32_t expected = static_cast<uint32_t>(matrix * 64 + low) |
                                static_cast<uint32_t>(matrix * 64 + high) << 16;
      if (registers[matrix] != expected)
        simt::current_launch().fault("wrong element in matrix " + std::to_string(matrix));
    }
  });
}

TEST(ldmatrix_follows_the_manuals_lane_map) {
  check_ldmatrix<1>(false);
  check_ldmatrix<2>(false);
  check_ldmatrix<4>(false);
}

TEST(ldmatrix_trans_follows_the_manuals_lane_map) {
  check_ldmatrix<1>(true);
  check_ldmatrix<2>(true);
  check_ldmatrix<4>(true);
}

TEST(ldmatrix_of_a_misaligned_row_is_a_fault) {
  CHECK_FAULTS(grid(1, 32, 1024), "misaligned", [] {
    uint32_t registers[1];
    device::ldmatrix(registers, device::dynamic_shared<uint16_t>() + device::lane_index() * 4);
  });
}

uint64_t conflicts_of(bool swizzled) {
  using Tile = device::SwizzledTile<device::float16, 16, 64>;
  return simt::launch(grid(1, 32, Tile::kBytes),
                      [&] {
                        const Tile tile{device::dynamic_shared<device::float16>()};
                        const int lane = device::lane_index();
                        uint32_t registers[4];
                        const auto* row = swizzled ? tile.at(lane % 16, lane / 16)
                                                   : tile.base + lane % 16 * 64 + lane / 16 * 8;
                        device::ldmatrix(registers, row);
                      })
      .matrix_row_conflicts;
}

TEST(swizzled_tile_has_no_bank_conflicts_and_a_plain_one_does) {
  CHECK_EQUAL(conflicts_of(true), uint64_t{0});
  CHECK_EQUAL(conflicts_of(false), uint64_t{4 * 7});
}

TEST(swizzled_tile_gives_every_chunk_its_own_place) {
  using Tile = device::SwizzledTile<device::float16, 16, 128>;
  const Tile tile{nullptr};
  std::vector<int> used(16 * 16, 0);
  for (int row = 0; row < 16; ++row) {
    for (int chunk = 0; chunk < Tile::kChunksPerRow; ++chunk) {
      ++used[(reinterpret_cast<uintptr_t>(tile.at(row, chunk))) / 16];
    }
  }
  CHECK(std::all_of(used.begin(), used.end(), [](int n) { return n == 1; }));
}

// Rounds to the nearest value of a format with `bits` mantissa bits, by the definition: ties to
// even, subnormals included.
double rounded(double value, int bits, int smallest_exponent, double largest) {
  if (value == 0.0 || std::isnan(value) || std::isinf(value)) return value;
  const int exponent = std::max(std::ilogb(value), smallest_exponent);
  const double unit = std::ldexp(1.0, exponent - bits);
  const double result = std::nearbyint(value / unit) * unit;
  return std::abs(result) > largest ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                    : result;
}

TEST(float16_values_survive_the_way_through_float) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = simt::float16_to_float(static_cast<uint16_t>(bits));
    if ((bits & 0x7fffu) > 0x7c00u) {
      CHECK(std::isnan(value));
      continue;
    }
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent == 31  ? std::numeric_limits<double>::infinity()
                             : exponent == 0 ? std::ldexp(mantissa, -24)
                                             : std::ldexp(1024 + mantissa, exponent - 25);
    CHECK_EQUAL(value, static_cast<float>(bits & 0x8000u ? -magnitude : magnitude));
    CHECK_EQUAL(simt::float_to_float16(value), static_cast<uint16_t>(bits));
  }
}

TEST(rounding_to_16_bits_is_to_nearest_even) {
  std::mt19937 random(11);
  for (int i = 0; i < 400000; ++i) {
    uint32_t bits = random();
    if (i % 2 == 0) bits = (bits & 0xffffe000u) | 0x1000u;  // half way between two float16
    if (i % 3 == 0) bits = (bits & 0xffff0000u) | 0x8000u;  // half way between two bfloat16
    const float value = std::bit_cast<float>(bits);
    if (std::isnan(value)) continue;
    CHECK_EQUAL(simt::float16_to_float(simt::float_to_float16(value)),
                static_cast<float>(rounded(value, 10, -14, 65504.0)));
    CHECK_EQUAL(simt::bfloat16_to_float(simt::float_to_bfloat16(value)),
                static_cast<float>(rounded(value, 7, -126, std::ldexp(255.0, 120))));
  }
  CHECK(std::isnan(simt::float16_to_float(simt::float_to_float16(NAN))));
  CHECK(std::isnan(simt::bfloat16_to_float(simt::float_to_bfloat16(NAN))));
}

// The known answers that the generator's authors publish with Random123 for philox4x32 with 10
// rounds.
TEST(philox_gives_the_published_numbers) {
  const auto check = [](uint64_t seed, uint64_t offset, uint64_t position,
                        std::vector<uint32_t> expected) {
    const device::Random4 random = device::philox(seed, offset, position);
    CHECK(std::equal(expected.begin(), expected.end(), random.words));
  };
  check(0, 0, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  check(~0ull, ~0ull, ~0ull, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  check(0x299f31d0a4093822ull, 0x0370734413198a2eull, 0x85a308d3243f6a88ull,
        {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST(uniform_numbers_are_below_one) {
  CHECK_EQUAL(device::to_uniform(0), 0.0f);
  CHECK(device::to_uniform(~0u) < 1.0f);
}

}  // namespace
