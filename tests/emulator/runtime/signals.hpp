// While a kernel runs, an invalid address or an ASan report becomes a fault of the launch.
#pragma once

#include <csignal>
#include <vector>

namespace emulator {

class FaultSignals {
 public:
  FaultSignals();
  ~FaultSignals();
  FaultSignals(const FaultSignals&) = delete;

 private:
  struct sigaction before_[3];
  stack_t stack_before_;
  std::vector<char> stack_;  // a fiber that overflowed its own stack has none left
};

}  // namespace emulator
