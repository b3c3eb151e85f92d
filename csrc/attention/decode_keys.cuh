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
  int block;  // as the block table has it
  int slot;   // in the block; kNowhere for a key that is not needed, below it for a new one

  static constexpr int kNowhere = -1;

  LLMJP_DEVICE static KeyPlace fresh(int index) { return {0, kNowhere - 1 - index}; }
  LLMJP_DEVICE bool is_fresh() const { return slot < kNowhere; }
  LLMJP_DEVICE int fresh_index() const { return kNowhere - 1 - slot; }
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

  LLMJP_DEVICE KeyPlace find(int key) const {
    if (key >= end) return {0, KeyPlace::kNowhere};
    return key < filled ? find_in_cache(key) : KeyPlace::fresh(key - filled);
  }

  LLMJP_DEVICE KeyPlace find_in_cache(int key) const {
    if (p.block_table == nullptr) return {batch_index, key};
    const int page = static_cast<int>(static_cast<unsigned>(key) / static_cast<unsigned>(p.page));
    return {p.block_table[int64_t{batch_index} * p.pages + page], key - page * p.page};
  }

  // Whether there is such a row; the block table may name blocks that are not there.
  LLMJP_DEVICE bool exists(KeyPlace place) const {
    return place.is_fresh() || (place.slot >= 0 && static_cast<unsigned>(place.block) <
                                                       static_cast<unsigned>(p.blocks));
  }

  // Addresses rather than pointers: shuffles pass them on. Only of rows that exist.
  LLMJP_DEVICE uint64_t k_row(KeyPlace place) const {
    return row(place, p.k_cache, p.k_strides, p.k_new, p.k_new_strides);
  }
  LLMJP_DEVICE uint64_t v_row(KeyPlace place) const {
    return row(place, p.v_cache, p.v_strides, p.v_new, p.v_new_strides);
  }

 private:
  LLMJP_DEVICE uint64_t row(KeyPlace place, const void* cache, const Strides& strides,
                            const void* fresh, const Strides& fresh_strides) const {
    const bool is_fresh = place.is_fresh();
    const Strides& s = is_fresh ? fresh_strides : strides;
    const int64_t block = is_fresh ? batch_index : place.block;
    const int64_t slot = is_fresh ? place.fresh_index() : place.slot;
    const int head = device::not_before(kv_head);  // else its offsets are kept in registers
    return reinterpret_cast<uint64_t>(is_fresh ? fresh : cache) +
           static_cast<uint64_t>(block * s.batch + slot * s.token + head * s.head) * sizeof(T);
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
    static_assert(device::kWarpSize % kRowsPerPass == 0, "a power of two up to a warp's lanes");
    const KeyTile k_tile{stage};
    const KeyTile v_tile{stage + Tile::kStageElements / 2};
    const auto thread = static_cast<unsigned>(device::not_before(device::thread_index()));
    const int chunk = static_cast<int>(thread % KeyTile::kChunksPerRow);
    const int first_row = static_cast<int>(thread / KeyTile::kChunksPerRow);
    const uint64_t offset = static_cast<unsigned>(chunk) * 16;
    const bool in_head = chunk * KeyTile::kChunkElements < keys_.p.head_dim;
    LLMJP_UNROLL
    for (int part = 0; part < kParts; ++part) {
      const bool exists = keys_.exists(places_[part]);
      faulty_ = faulty_ || (!exists && places_[part].slot >= 0);
      const uint64_t own_k = keys_.k_row(places_[part]);
      const uint64_t own_v = keys_.v_row(places_[part]);
      const uint32_t existing = device::ballot(exists) >> first_row;
      LLMJP_UNROLL
      for (int pass = 0; pass < device::kWarpSize / kRowsPerPass; ++pass) {
        const int skipped = pass * kRowsPerPass;
        // The swizzle of row first_row + skipped, as first_row has no bits in common with it.
        const int place = (part * device::kWarpSize + skipped) * Tile::kHeadDim;
        T* const k = k_tile.at(first_row, chunk ^ skipped % 8) + place;
        T* const v = v_tile.at(first_row, chunk ^ skipped % 8) + place;
        const uint64_t k_row = device::shuffle(own_k, first_row + skipped);
        const uint64_t v_row = device::shuffle(own_v, first_row + skipped);
        // What does not exist becomes zero.
        const int bytes = (existing >> skipped & 1) != 0 && in_head ? 16 : 0;
        device::cp_async(k, reinterpret_cast<const void*>(k_row + offset), bytes);
        device::cp_async(v, reinterpret_cast<const void*>(v_row + offset), bytes);
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
      places_[part] = keys_.find(next_key_ + part * device::kWarpSize + device::lane_index_here());
    }
    next_key_ += Tile::kKeys;
  }

  const SequenceKeys<T>& keys_;
  int next_key_;
  KeyPlace places_[kParts];
  bool faulty_ = false;
};

// Writes every `shares`-th new key and value from the `share`-th on into the cache.
template <class T, class Tile>
LLMJP_DEVICE void append_keys(const SequenceKeys<T>& keys, int share, int shares) {
  using Piece = device::Vector<T, device::kVectorElements<T>>;
  constexpr int kChunks = Tile::kHeadDim / device::kVectorElements<T>;
  constexpr int kRowsPerPass = Tile::kThreads / kChunks;
  const int offset = device::thread_index() % kChunks * device::kVectorElements<T>;
  if (offset >= keys.p.head_dim) return;
  const int64_t first = int64_t{device::thread_index() / kChunks} * shares + share;
  for (int64_t row = first; row < keys.p.fresh; row += int64_t{kRowsPerPass} * shares) {
    const KeyPlace source = KeyPlace::fresh(static_cast<int>(row));
    const KeyPlace target = keys.find_in_cache(keys.filled + static_cast<int>(row));
    if (!keys.exists(target)) continue;
    const auto k =
        device::load_once<Piece>(reinterpret_cast<const T*>(keys.k_row(source)) + offset);
    const auto v =
        device::load_once<Piece>(reinterpret_cast<const T*>(keys.v_row(source)) + offset);
    device::store(reinterpret_cast<T*>(keys.k_row(target)) + offset, k);
    device::store(reinterpret_cast<T*>(keys.v_row(target)) + offset, v);
  }
}

}  // namespace llmjp::attention
