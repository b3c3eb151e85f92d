// Where the keys of a sequence lie, and how they get to shared memory and into the cache.
#pragma once

#include "attention/attention_decode.h"
#include "attention/decode_tiles.h"
#include "device/cp_async.h"
#include "device/schedule.h"
#include "device/shuffle.h"
#include "device/thread.h"
#include "device/tile.h"
#include "device/vector.h"

namespace llmjp::attention {

// The row of a key: in a block of the cache, or among the new keys.
struct KeyPlace {
  int block;
  int slot;  // −1: no such key, or it is not needed

  static constexpr int kFresh = -1;  // in place of a block
};

// The keys of one sequence and key head. New keys are read where the caller put them, and the cache
// is read only where it was filled before: that the same launch appends races with nothing.
template <class T>
struct SequenceKeys {
  const AttentionDecode& p;
  int batch_index;
  int kv_head;
  int filled;  // keys in the cache before the append
  int end;     // behind the last key that some row of the block sees

  // Sets `faulty` where the block table names a block that is not there.
  LLMJP_DEVICE KeyPlace find(int key, bool& faulty) const {
    if (key >= end) return {0, -1};
    if (key >= filled) return {KeyPlace::kFresh, key - filled};
    return find_in_cache(key, faulty);
  }

  LLMJP_DEVICE KeyPlace find_in_cache(int key, bool& faulty) const {
    if (p.block_table == nullptr) return {batch_index, key};
    const int page = static_cast<int>(static_cast<unsigned>(key) / static_cast<unsigned>(p.page));
    const int block = p.block_table[int64_t{batch_index} * p.pages + page];
    if (static_cast<unsigned>(block) >= static_cast<unsigned>(p.blocks)) {
      faulty = true;
      return {0, -1};
    }
    return {block, key - page * p.page};
  }

  // Addresses rather than pointers: shuffles pass them on. 0 for a key that is not there.
  LLMJP_DEVICE uint64_t k_row(KeyPlace place) const {
    return row(place, p.k_cache, p.k_strides, p.k_new, p.k_new_strides);
  }
  LLMJP_DEVICE uint64_t v_row(KeyPlace place) const {
    return row(place, p.v_cache, p.v_strides, p.v_new, p.v_new_strides);
  }

 private:
  LLMJP_DEVICE uint64_t row(KeyPlace place, const void* cache, const Strides& strides,
                            const void* fresh, const Strides& fresh_strides) const {
    if (place.slot < 0) return 0;
    const bool is_fresh = place.block == KeyPlace::kFresh;
    const Strides& s = is_fresh ? fresh_strides : strides;
    const int64_t block = is_fresh ? batch_index : place.block;
    const int head = device::not_before(kv_head);  // else its offsets are kept in registers
    return reinterpret_cast<uint64_t>(static_cast<const T*>(is_fresh ? fresh : cache) +
                                      block * s.batch + place.slot * s.token + head * s.head);
  }
};

// Copies a tile of keys and its values, two halves of a stage. Each lane of a warp knows the places
// of every 32nd key, found one tile ahead: the block table's entry has arrived when it is needed.
template <class T, class Tile>
class KeyCopy {
 public:
  LLMJP_DEVICE KeyCopy(const SequenceKeys<T>& keys, int first_key)
      : keys_(keys), next_key_(first_key) {
    find_next();
  }

  // The next tile, into `stage`.
  LLMJP_DEVICE void copy(T* stage) {
    using KeyTile = device::SwizzledTile<T, Tile::kKeys, Tile::kHeadDim>;
    constexpr int kRowsPerPass = Tile::kThreads / KeyTile::kChunksPerRow;
    static_assert(device::kWarpSize % kRowsPerPass == 0 || kRowsPerPass == device::kWarpSize,
                  "the keys of a pass are known to one place of each lane");
    const KeyTile k_tile{stage};
    const KeyTile v_tile{stage + Tile::kStageElements / 2};
    const auto thread = static_cast<unsigned>(device::not_before(device::thread_index()));
    const int chunk = static_cast<int>(thread % KeyTile::kChunksPerRow);
    const int first_row = static_cast<int>(thread / KeyTile::kChunksPerRow);
    const bool in_head = chunk * KeyTile::kChunkElements < keys_.p.head_dim;
    LLMJP_UNROLL
    for (int part = 0; part < kParts; ++part) {
      const uint64_t own_k = keys_.k_row(places_[part]);
      const uint64_t own_v = keys_.v_row(places_[part]);
      LLMJP_UNROLL
      for (int pass = 0; pass < device::kWarpSize / kRowsPerPass; ++pass) {
        const int lane = first_row + pass * kRowsPerPass;
        const int row = part * device::kWarpSize + lane;
        copy_piece(k_tile.at(row, chunk), device::shuffle(own_k, lane), chunk, in_head);
        copy_piece(v_tile.at(row, chunk), device::shuffle(own_v, lane), chunk, in_head);
      }
    }
    find_next();
  }

  // Whether the block table named a block that is not there; the same in all lanes.
  LLMJP_DEVICE bool is_faulty() const { return device::ballot(faulty_) != 0; }

 private:
  static constexpr int kParts = Tile::kKeys / device::kWarpSize;

  LLMJP_DEVICE void find_next() {
    LLMJP_UNROLL
    for (int part = 0; part < kParts; ++part) {
      places_[part] =
          keys_.find(next_key_ + part * device::kWarpSize + device::lane_index_here(), faulty_);
    }
    next_key_ += Tile::kKeys;
  }

  LLMJP_DEVICE static void copy_piece(T* target, uint64_t row, int chunk, bool in_head) {
    // What does not exist becomes zero.
    device::cp_async(target, reinterpret_cast<const void*>(row + static_cast<unsigned>(chunk) * 16),
                     row != 0 && in_head ? 16 : 0);
  }

  const SequenceKeys<T>& keys_;
  int next_key_;
  KeyPlace places_[kParts];
  bool faulty_ = false;
};

// Writes every `shares`-th new key and value from the `share`-th on into the cache.
template <class T, int kThreads>
LLMJP_DEVICE void append_keys(const SequenceKeys<T>& keys, int share, int shares) {
  using Piece = device::Vector<T, device::kVectorElements<T>>;
  const int chunks = keys.p.head_dim / device::kVectorElements<T>;
  const int rows = (keys.p.fresh - share + shares - 1) / shares;
  for (int64_t i = device::thread_index(); i < int64_t{rows} * chunks; i += kThreads) {
    const int row = static_cast<int>(i / chunks) * shares + share;
    const int offset = static_cast<int>(i % chunks) * device::kVectorElements<T>;
    bool faulty = false;
    const KeyPlace source{KeyPlace::kFresh, row};
    const KeyPlace target = keys.find_in_cache(keys.filled + row, faulty);
    if (faulty) continue;
    const auto k =
        device::load_once<Piece>(reinterpret_cast<const T*>(keys.k_row(source)) + offset);
    const auto v =
        device::load_once<Piece>(reinterpret_cast<const T*>(keys.v_row(source)) + offset);
    device::store(reinterpret_cast<T*>(keys.k_row(target)) + offset, k);
    device::store(reinterpret_cast<T*>(keys.v_row(target)) + offset, v);
  }
}

}  // namespace llmjp::attention
