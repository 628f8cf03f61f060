// Threads of control that pass the processor to one another, each on a stack of its own.
#pragma once

#include <cstddef>

namespace rnnkernels::emulation {

class Fiber {
 public:
  Fiber() = default;  // what runs already, on the stack it has
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Makes it begin with entry(), which does not return, once somebody goes on with it.
  void prepare(void (*entry)());
  // Returns when somebody goes on with this one again.
  void go_on_with(Fiber& to) { leave(to, false); }
  // Does not return: the stack may be used again.
  [[noreturn]] void end_with(Fiber& to);

 private:
  void* at_ = nullptr;  // where it was left: its stack pointer, or its ucontext_t
  char* stack_ = nullptr;
  void (*entry_)() = nullptr;
  // What the address sanitizer knows it by.
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
