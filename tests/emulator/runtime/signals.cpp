#include "signals.hpp"

#include <ucontext.h>

#include "launch.hpp"
#include "sanitizer.hpp"

namespace emulator {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};

const void* code_of(void* context) {
#if defined(__x86_64__)
  return reinterpret_cast<const char*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]) + 1;
#else
  return nullptr;
#endif
}

void on_signal(int number, siginfo_t* info, void* context) {
  if (!launch || !launch->current) {  // not the kernel's fault
    signal(number, SIG_DFL);
    return;
  }
  const char* what = number == SIGFPE                ? "division by zero"
                     : is_fiber_stack(info->si_addr) ? "stack overflow, or a local variable of another thread"
                                                     : "access to an invalid or misaligned address";
  fail(number == SIGFPE ? "undefined" : "bounds", format("%s\n  %s, address %p, %s", what, name_of(self()).c_str(),
                                                         info->si_addr, name_of_code(code_of(context)).c_str()));
}

// ASan goes on after its report; the launch ends when the kernel next comes to the scheduler.
void on_sanitizer_report(const char* text) {
  if (launch && launch->current) note_fault("address", name_of(self()) + "\n" + text);
}

}  // namespace

FaultSignals::FaultSignals() : stack_(64 * 1024) {
  stack_t stack{};
  stack.ss_sp = stack_.data();
  stack.ss_size = stack_.size();
  sigaltstack(&stack, &stack_before_);
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler does not return
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &before_[i]);
  if (sanitizer_loaded()) __asan_set_error_report_callback(on_sanitizer_report);
}

FaultSignals::~FaultSignals() {
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  stack_before_.ss_flags &= ~SS_ONSTACK;
  sigaltstack(&stack_before_, nullptr);
  if (sanitizer_loaded()) __asan_set_error_report_callback(nullptr);
}

}  // namespace emulator
