// All memory a kernel may touch, apart from its own stack: the arena with arguments and dynamic shared memory, and the
// module's static shared memory. Each byte has a state, each granule of a few bytes a shadow cell (detector.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch.hpp"

namespace emulator {

// State of one byte. Python sets these for arguments (_memory.py) and reads kInitialised back.
enum : uint8_t { kAccessible = 1, kInitialised = 2, kWritable = 4, kInFlight = 8 };

// One thread's access, as remembered by a shadow cell. clock 0: none.
struct Access {
  uint32_t block;
  uint16_t thread;
  bool atomic;
  uint32_t clock;
  uint32_t code;  // offset in the kernel's module
};

struct Cell {
  Access write;
  Access reads[2];
};

struct Region {
  const char* begin;
  size_t bytes;
  unsigned granule_log2;
  uint8_t* state;
  Cell* cells;
  const Block* owner;  // for shared memory: its block
  std::string label;
};

constexpr size_t kPage = 4096;
constexpr uint8_t kPoison = 0xff;  // as bytes of any floating-point type: NaN

// Lays out the memory of a launch and forgets it again.
class Memory {
 public:
  explicit Memory(const Request& request);
  ~Memory();
  Memory(const Memory&) = delete;

  void begin_block(Block& block, size_t slot);  // poisons the shared memory it will use
  Region* find(const void* address);            // null: nobody's memory

 private:
  Region& add(const char* begin, size_t bytes, size_t granule, uint8_t* state, std::string label);
  void give_pages(const Region& region, uint16_t owner);

  const bool detect_;
  std::vector<Region> regions_;  // [0] is unused, so that 0 can mean "no owner"
  std::vector<std::vector<uint8_t>> shared_state_;
  size_t first_shared_ = 0;
  size_t arena_used_ = 0;
};

extern Memory* memory;

// The arena's address range is reserved once; Python lays out the arguments in it.
char* arena();
constexpr size_t kArenaBytes = size_t{8} << 30;

}  // namespace emulator
