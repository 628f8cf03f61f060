// Fibers: threads of control that hand the processor to one another explicitly. Each has its own stack.
#pragma once

#include <cstddef>

namespace rnnkernels::emulation {

class Fiber {
 public:
  Fiber() = default;  // the code that is running already, on its current stack
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The first switch to this fiber calls entry(), which must not return.
  void prepare(void (*entry)());
  // Returns when another fiber switches back to this one.
  void switch_to(Fiber& to) { leave(to, false); }
  // Never returns. The stack may be reused afterwards.
  [[noreturn]] void finish_and_switch_to(Fiber& to);

 private:
  void* at_ = nullptr;  // the suspended state: the stack pointer, or a ucontext_t
  char* stack_ = nullptr;
  void (*entry_)() = nullptr;
  // For the address sanitizer: the stack's bottom and size, and its fake stack.
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_ = nullptr;

  static Fiber* left_;
  static Fiber* running_;
  static void begin();
  void leave(Fiber& to, bool for_good);
  void arrive();
};

}  // namespace rnnkernels::emulation
