#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "sanitizer.hpp"

namespace emulator {
namespace {

char* reserve(size_t bytes) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) abort();
  return static_cast<char*>(address);
}

size_t round_up(size_t value, size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Which region a page of the arena belongs to. Regions never share a page.
uint16_t* page_owners() {
  static uint16_t* const owners = reinterpret_cast<uint16_t*>(reserve(kArenaBytes / kPage * sizeof(uint16_t)));
  return owners;
}

}  // namespace

Memory* memory = nullptr;

char* arena() {
  static char* const base = reserve(kArenaBytes);
  return base;
}

Region& Memory::add(const char* begin, size_t bytes, size_t granule, uint8_t* state, std::string label) {
  Region region{begin, bytes, 0, state, nullptr, nullptr, std::move(label)};
  while (size_t{1} << region.granule_log2 < granule) ++region.granule_log2;
  if (detect_) region.cells = static_cast<Cell*>(calloc((bytes >> region.granule_log2) + 2, sizeof(Cell)));
  regions_.push_back(std::move(region));
  return regions_.back();
}

void Memory::give_pages(const Region& region, uint16_t owner) {
  const size_t first = (region.begin - arena()) / kPage;
  const size_t last = (region.begin - arena() + region.bytes) / kPage;
  std::fill(page_owners() + first, page_owners() + last + 1, owner);
}

Memory::Memory(const Request& request) : detect_(request.detect) {
  const Module& module = launch->module;
  const size_t blocks = launch->blocks.size();
  regions_.reserve(1 + request.region_count + 2 * blocks);
  regions_.push_back({});
  size_t end = kPage;
  for (size_t r = 0; r < request.region_count; ++r) {
    const RegionRequest& asked = request.regions[r];
    add(arena() + asked.offset, asked.bytes, asked.granule, asked.state, asked.label);
    end = std::max(end, asked.offset + asked.bytes);
  }

  // Two regions for each block that runs at the same time: dynamic and static shared memory.
  first_shared_ = regions_.size();
  shared_state_.resize(2 * blocks);
  for (size_t slot = 0; slot < blocks; ++slot) {
    end = round_up(end, kPage) + kPage;
    launch->blocks[slot].dynamic_shared = arena() + end;
    const size_t bytes[] = {request.dynamic_shared_bytes, module.static_shared_bytes};
    const char* const begin[] = {arena() + end, module.static_shared};
    const char* const label[] = {"dynamic shared memory", "static shared memory"};
    for (int kind = 0; kind < 2; ++kind) {
      auto& state = shared_state_[2 * slot + kind];
      state.resize(bytes[kind]);
      add(begin[kind], bytes[kind], 2, state.data(), label[kind]).owner = &launch->blocks[slot];
    }
    launch->blocks[slot].static_shared.resize(module.static_shared_bytes);
    end += request.dynamic_shared_bytes;
  }

  arena_used_ = round_up(end, kPage) + kPage;
  forbid(arena(), arena_used_);
  for (size_t r = 1; r < regions_.size(); ++r) {
    const Region& region = regions_[r];
    if (region.begin == module.static_shared) continue;
    give_pages(region, r);
    // Poisoning works on 8 bytes at a time from an aligned address on, so holes are allowed first and forbidden after.
    allow(region.begin, region.bytes);
    for (size_t i = 0; sanitizer_loaded() && r < first_shared_ && i < region.bytes; ++i) {
      size_t hole = i;
      while (hole < region.bytes && !(region.state[hole] & kAccessible)) ++hole;
      if (hole - i >= 8) forbid(region.begin + i, hole - i);
      i = hole;
    }
  }
}

Memory::~Memory() {
  for (size_t r = 1; r < regions_.size(); ++r) {
    free(regions_[r].cells);
    if (regions_[r].begin != launch->module.static_shared) give_pages(regions_[r], 0);
  }
  allow(arena(), arena_used_);
}

void Memory::begin_block(Block& block, size_t slot) {
  for (auto* state : {&shared_state_[2 * slot], &shared_state_[2 * slot + 1]})
    std::fill(state->begin(), state->end(), kAccessible | kWritable);
  memset(block.dynamic_shared, kPoison, shared_state_[2 * slot].size());
  std::fill(block.static_shared.begin(), block.static_shared.end(), static_cast<char>(kPoison));
}

Region* Memory::find(const void* address) {
  const size_t offset = static_cast<const char*>(address) - arena();
  if (offset < kArenaBytes) {
    const uint16_t owner = page_owners()[offset / kPage];
    return owner ? &regions_[owner] : nullptr;
  }
  const Module& module = launch->module;
  if (static_cast<size_t>(static_cast<const char*>(address) - module.static_shared) < module.static_shared_bytes)
    return &regions_[first_shared_ + 2 * (self().block - launch->blocks.data()) + 1];
  return nullptr;
}

}  // namespace emulator
