// Threads that meet: the whole block at a barrier, the lanes of a mask in a warp operation.

#include "synchronise.hpp"

#include <algorithm>
#include <cstring>

namespace emulator {
namespace {

const char* name_of(Barrier kind) {
  static const char* const names[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_or", "__syncthreads_and"};
  return names[static_cast<int>(kind)];
}

const char* name_of(Meeting kind) {
  static const char* const names[] = {"__syncwarp",      "__shfl_sync",   "__shfl_up_sync", "__shfl_down_sync",
                                      "__shfl_xor_sync", "__ballot_sync", "__any_sync",     "__all_sync"};
  return names[static_cast<int>(kind)];
}

bool same(Site a, Site b) {
  return a.line == b.line && strcmp(a.file, b.file) == 0;
}

// All threads of the block that have not returned are here.
void open_barrier(Block& block) {
  switch (block.barrier) {
    case Barrier::plain:
    case Barrier::count:
      block.barrier_result = block.predicates;
      break;
    case Barrier::any_of:
      block.barrier_result = block.predicates != 0;
      break;
    case Barrier::all_of:
      block.barrier_result = block.predicates == static_cast<int>(block.arrived);
      break;
  }
  block.arrived = 0;
  block.predicates = 0;
  for (Thread& thread : block.threads) {
    thread.clock_at_barrier = thread.clock++;
    if (!thread.exited && &thread != launch->current) make_ready(thread);
  }
}

}  // namespace

int block_barrier(Barrier kind, bool predicate, Site site) {
  Thread& thread = self();
  Block& block = *thread.block;
  if (block.arrived == 0) {
    block.barrier = kind;
    block.barrier_site = site;
  } else if (block.barrier != kind || !same(block.barrier_site, site)) {
    fail("synchronisation",
         format("threads of one block wait in different barriers\n  %s: %s at %s\n  others: %s at %s",
                name_of(thread).c_str(), name_of(kind), name_of(site).c_str(), name_of(block.barrier),
                name_of(block.barrier_site).c_str()));
  }
  ++block.arrived;
  block.predicates += predicate;
  if (block.arrived == block.alive) {
    open_barrier(block);
    preempt();  // the last one to come must not always be the first to go on
  } else {
    wait(name_of(kind), site);
  }
  return block.barrier_result;
}

void group_barrier(int number, int threads, Site site) {
  Thread& thread = self();
  const auto refuse = [&](const std::string& why) {
    fail("synchronisation", format("%s\n  %s at %s", why.c_str(), name_of(thread).c_str(), name_of(site).c_str()));
  };
  if (number < 1 || number >= kGroups || threads % 32)
    refuse(format("barrier %d of %d threads: the number must be 1 to %d, the threads whole warps", number, threads,
                  kGroups - 1));
  Block::Group& group = thread.block->groups[number];
  if (!group.threads) group.threads = threads;
  if (group.threads != threads)
    refuse(format("barrier %d is for %d threads here and for %d elsewhere", number, threads, group.threads));
  if (group.members.size() < static_cast<size_t>(threads)) {
    group.members.push_back(&thread);
  } else if (std::find(group.members.begin(), group.members.end(), &thread) == group.members.end()) {
    refuse(format("barrier %d has other members", number));
  }
  if (std::find(group.waiting.begin(), group.waiting.end(), &thread) != group.waiting.end())
    refuse(format("comes twice to barrier %d", number));
  group.waiting.push_back(&thread);
  if (group.waiting.size() < static_cast<size_t>(threads)) return wait("group_sync", site);
  for (Thread* member : group.waiting) {
    member->clock_at_group_barrier[number] = member->clock++;
    if (member != &thread) make_ready(*member);
  }
  group.waiting.clear();
  preempt();
}

void* cluster_address(void* shared, int rank, Site site) {
  const Block& block = *self().block;
  const size_t offset = static_cast<char*>(shared) - block.dynamic_shared;
  if (offset >= launch->request.dynamic_shared_bytes || rank < 0 || rank >= launch->request.cluster)
    fail("bounds",
         format("%s asks for rank %d of a cluster of %d, byte %zu of %zu, at %s", name_of(self()).c_str(), rank,
                launch->request.cluster, offset, size_t{launch->request.dynamic_shared_bytes}, name_of(site).c_str()));
  return launch->blocks[rank].dynamic_shared + offset;
}

void cluster_barrier(Site site) {
  unsigned alive = 0;
  for (const Block& block : launch->blocks) alive += block.threads.size();
  if (++launch->arrived_in_cluster < alive) return wait("cluster_sync", site);
  launch->arrived_in_cluster = 0;
  for (Block& block : launch->blocks) {
    for (Thread& thread : block.threads) {
      thread.clock_at_barrier = thread.clock_at_cluster_barrier = thread.clock++;
      if (&thread != launch->current) make_ready(thread);
    }
  }
  preempt();
}

namespace {

[[noreturn]] void refuse(const Thread& thread, Meeting kind, Site site, const std::string& why) {
  fail("synchronisation",
       format("%s: %s in %s at %s", why.c_str(), name_of(thread).c_str(), name_of(kind), name_of(site).c_str()));
}

// Whether a lane can no longer take part. __syncwarp does without it; a shuffle or vote would have an undefined result.
bool is_gone(const Thread& thread, unsigned lane, Site site) {
  const unsigned index = thread.warp() * 32 + lane;
  const bool exists = thread.block->has(index);
  if (exists && !thread.block->threads[index].exited) return false;
  if (thread.meeting != Meeting::sync)
    refuse(
        thread, thread.meeting, site,
        format("mask 0x%08x names lane %u, which %s", thread.mask, lane, exists ? "has returned" : "does not exist"));
  return true;
}

// Whether all lanes of the mask are waiting in this same operation. Fails if one never can.
bool complete(const Thread& thread, Site site) {
  bool everyone = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(thread.mask >> lane & 1) || is_gone(thread, lane, site)) continue;
    const Thread& other = thread.block->threads[thread.warp() * 32 + lane];
    if (&other == &thread) continue;
    if (!other.mask) {
      everyone = false;
    } else if (other.mask != thread.mask || other.meeting != thread.meeting || other.width != thread.width ||
               !same(other.site, site)) {
      refuse(thread, thread.meeting, site,
             format("lane %u waits in %s with mask 0x%08x at %s, but lane %u brings mask 0x%08x", lane,
                    name_of(other.meeting), other.mask, name_of(other.site).c_str(), thread.lane(), thread.mask));
    }
  }
  return everyone;
}

constexpr uint64_t kPoison = ~uint64_t{0};  // NaN in every floating-point type

uint64_t shuffled(const Thread& lane, const uint64_t (&bits)[32]) {
  const int own = lane.lane(), segment = own & -lane.width;
  int source = own;
  switch (lane.meeting) {
    case Meeting::shuffle:
      source = segment + (lane.argument & (lane.width - 1));
      break;
    case Meeting::shuffle_up:
      if (own - lane.argument >= segment) source = own - lane.argument;
      break;
    case Meeting::shuffle_down:
      if (own + lane.argument < segment + lane.width) source = own + lane.argument;
      break;
    default:  // xor: may reach into a lower segment, not into a higher one
      source = own ^ lane.argument;
      if (source >= segment + lane.width) source = own;
  }
  return lane.mask >> source & 1 ? bits[source] : kPoison;
}

// Everyone is here: computes what each lane takes away, and lets those go on that wait.
void meet(const Thread& last) {
  Thread* const warp = &last.block->threads[last.warp() * 32];
  unsigned mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (last.mask >> lane & 1 && !is_gone(last, lane, last.site)) mask |= 1u << lane;
  const bool orders = last.meeting == Meeting::sync;
  uint64_t bits[32] = {};
  uint32_t known[32] = {};
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    bits[lane] = warp[lane].bits;
    ballot |= unsigned{warp[lane].bits != 0} << lane;
    for (unsigned k = 0; orders && k < 32; ++k) known[k] = std::max(known[k], warp[lane].known[k]);
    known[lane] = std::max(known[lane], warp[lane].clock);
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& thread = warp[lane];
    switch (thread.meeting) {
      case Meeting::sync:
        memcpy(thread.known, known, sizeof known);
        ++thread.clock;
        break;
      case Meeting::ballot:
        thread.bits = ballot;
        break;
      case Meeting::any_of:
        thread.bits = ballot != 0;
        break;
      case Meeting::all_of:
        thread.bits = ballot == mask;
        break;
      default:
        thread.bits = shuffled(thread, bits);
    }
    thread.mask = 0;
    if (&thread != launch->current) make_ready(thread);
  }
}

}  // namespace

uint64_t warp_meeting(Meeting kind, unsigned mask, uint64_t bits, int argument, int width, Site site) {
  Thread& thread = self();
  if (!(mask >> thread.lane() & 1))
    refuse(thread, kind, site, format("mask 0x%08x does not name its own lane %u", mask, thread.lane()));
  if (width < 1 || width > 32 || (width & (width - 1)))
    refuse(thread, kind, site, format("width %d is not a power of two up to 32", width));
  thread.meeting = kind;
  thread.mask = mask;
  thread.bits = bits;
  thread.argument = argument;
  thread.width = width;
  thread.site = site;
  if (complete(thread, site)) {
    meet(thread);
    preempt();
  } else {
    wait(name_of(kind), site);
  }
  return thread.bits;
}

void leave() {
  Thread& thread = self();
  check_copies_done(thread);
  Block& block = *thread.block;
  thread.exited = true;
  --block.alive;
  if (block.arrived && block.arrived == block.alive) open_barrier(block);
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned index = thread.warp() * 32 + lane;
    if (!block.has(index)) break;
    const Thread& other = block.threads[index];
    if (other.mask >> thread.lane() & 1 && complete(other, other.site)) meet(other);
  }
}

}  // namespace emulator
