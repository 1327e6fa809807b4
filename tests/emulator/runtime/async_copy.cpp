// Asynchronous copies (cp.async) and words exchanged between blocks.

#include <algorithm>
#include <cstring>

#include "detector.hpp"
#include "synchronise.hpp"

namespace emulator {
namespace {

struct Waiter {
  Thread* thread;
  const unsigned long long* slot;
  unsigned tag;
};

std::vector<Waiter> waiters;

bool carries(unsigned long long word, unsigned tag) {
  return word >> 32 == tag;
}

void move(PendingCopy& copy) {
  if (copy.moved) return;
  copy.moved = true;
  memcpy(copy.shared, copy.global, copy.valid_bytes);
  memset(copy.shared + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
}

// A copy reads and writes at some time between its issue and its wait, so it is checked at both.
void check(const PendingCopy& copy) {
  if (!launch->request.detect) return;
  check_access(copy.global, copy.valid_bytes, {false, false, true}, false, copy.code);
  check_access(copy.shared, copy.bytes, {true, false, true}, true, copy.code);
}

void finish(PendingCopy& copy) {
  if (launch->request.detect) set_in_flight(copy.shared, copy.bytes, false);
  check(copy);
  move(copy);
}

}  // namespace

void copy_async(void* shared, const void* global, size_t bytes, size_t valid_bytes, Site site) {
  Thread& thread = self();
  const auto misaligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes; };
  if (valid_bytes > bytes)
    fail("copy", format("%zu valid bytes in an asynchronous copy of %zu\n  %s at %s", valid_bytes, bytes,
                        name_of(thread).c_str(), name_of(site).c_str()));
  if (misaligned(shared) || misaligned(global))
    fail("alignment", format("an asynchronous copy of %zu bytes needs both addresses aligned to as many\n  %s at %s",
                             bytes, name_of(thread).c_str(), name_of(site).c_str()));
  const Region* const target = memory->find(shared);
  const Region* const source = memory->find(global);
  if (!target || !target->owner || (valid_bytes && (!source || source->owner)))
    fail("copy", format("an asynchronous copy goes from global to shared memory\n  %s at %s", name_of(thread).c_str(),
                        name_of(site).c_str()));

  PendingCopy copy{static_cast<char*>(shared),
                   static_cast<const char*>(global),
                   static_cast<uint32_t>(bytes),
                   static_cast<uint32_t>(valid_bytes),
                   thread.open_group,
                   false,
                   site,
                   __builtin_return_address(0)};
  check(copy);
  if (launch->request.detect) set_in_flight(shared, bytes, true);
  memset(shared, kPoison, bytes);  // who reads too early gets NaN, also without the detector
  const CopyTime time = launch->request.copy_time;
  if (time == CopyTime::issue || (time == CopyTime::random && launch->random() % 2)) move(copy);
  thread.copies.push_back(copy);
}

void copy_async_commit() {
  Thread& thread = self();
  if (launch->request.copy_time == CopyTime::random)
    for (PendingCopy& copy : thread.copies)
      if (launch->random() % 2) move(copy);
  ++thread.open_group;
}

void copy_async_wait(int groups_left) {
  Thread& thread = self();
  const auto done = [&](const PendingCopy& copy) { return copy.group < thread.open_group - groups_left; };
  for (PendingCopy& copy : thread.copies)
    if (done(copy)) finish(copy);
  thread.copies.erase(std::remove_if(thread.copies.begin(), thread.copies.end(), done), thread.copies.end());
}

void check_copies_done(const Thread& thread) {
  if (thread.copies.empty()) return;
  fail("copy", format("%s returns with %zu asynchronous copies not waited for, the first from %s",
                      name_of(thread).c_str(), thread.copies.size(), name_of(thread.copies[0].site).c_str()));
}

void publish(unsigned long long* slot, unsigned long long value) {
  check_atomic(slot, sizeof *slot, Atomic::store, __builtin_return_address(0));
  *slot = value;
  const auto served = [&](const Waiter& w) {
    if (w.slot != slot || !carries(value, w.tag)) return false;
    make_ready(*w.thread);
    return true;
  };
  waiters.erase(std::remove_if(waiters.begin(), waiters.end(), served), waiters.end());
}

unsigned long long await_tag(const unsigned long long* slot, unsigned tag, Site site) {
  const void* const code = __builtin_return_address(0);
  while (true) {
    check_atomic(slot, sizeof *slot, Atomic::load, code);
    if (carries(*slot, tag)) return *slot;
    waiters.push_back({&self(), slot, tag});
    wait("await_tag", site);
  }
}

void forget_waiters() {
  waiters.clear();
}

}  // namespace emulator
