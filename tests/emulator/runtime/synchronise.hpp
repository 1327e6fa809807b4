// Barriers, warp meetings and asynchronous copies, as the scheduler sees them.
#pragma once

#include "launch.hpp"

namespace emulator {

// The current thread's kernel has returned: others may have waited only for it.
void leave();

// Reports copies that the thread never waited for.
void check_copies_done(const Thread& thread);

// Those who wait for a published word, of a launch that ended in a fault.
void forget_waiters();

}  // namespace emulator
