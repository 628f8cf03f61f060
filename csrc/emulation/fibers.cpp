// Stacks of fibers, and the switch between two of them: assembly on x86-64, ucontext elsewhere. ucontext is
// slower, because it makes two system calls per switch for the signal mask. Stacks are kept for reuse after
// their fibers end.
#include "emulation/fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__ELF__) && !defined(RNNKERNELS_UCONTEXT)
#define RNNKERNELS_SWITCH_BY_HAND
#else
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RNNKERNELS_ADDRESS_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define RNNKERNELS_ADDRESS_SANITIZER
#endif
#if defined(RNNKERNELS_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace rnnkernels::emulation {

// --- Stacks ------------------------------------------------------------------------------------------

namespace {

constexpr size_t kGuardBytes = 4096;  // at the low end, so that a stack overflow faults
constexpr size_t kStackBytes = 256 * 1024;

// Mapping a stack and its first pages costs more than a short fiber runs.
struct Stacks {
  std::vector<char*> free;
  ~Stacks() {
    for (char* stack : free) munmap(stack - kGuardBytes, kGuardBytes + kStackBytes);
  }
  char* take() {
    if (!free.empty()) {
      char* stack = free.back();
      free.pop_back();
      return stack;
    }
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
    return static_cast<char*>(memory) + kGuardBytes;
  }
} stacks;

}  // namespace

// --- The switch --------------------------------------------------------------------------------------

#if defined(RNNKERNELS_SWITCH_BY_HAND)

// Pushes the callee-saved registers, stores the stack pointer in *from, and pops the registers from `to`.
extern "C" void rnnkernels_switch_stack(void** from, void* to);
asm(R"(
    .pushsection .text
    .p2align 4
    .hidden rnnkernels_switch_stack
    .globl rnnkernels_switch_stack
    .type rnnkernels_switch_stack, @function
rnnkernels_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size rnnkernels_switch_stack, .-rnnkernels_switch_stack
    .popsection
)");

namespace {

// Prepares a stack as if it had been suspended just before a call of begin().
void* first_frame(char* stack, void (*begin)()) {
  uint64_t* top = reinterpret_cast<uint64_t*>(stack + kStackBytes);
  *--top = 0;  // begin's return address, which leaves the stack aligned as after any call
  *--top = reinterpret_cast<uint64_t>(begin);
  for (int i = 0; i < 6; ++i) *--top = 0;
  uint32_t* control = reinterpret_cast<uint32_t*>(--top);
  asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(control[0]), "=m"(control[1]));
  return top;
}
void switch_stack(void** from, void* to) { rnnkernels_switch_stack(from, to); }
void forget(void*) {}

}  // namespace

#else

namespace {

void* first_frame(char* stack, void (*begin)()) {
  ucontext_t* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, begin, 0);
  return context;
}
void switch_stack(void** from, void* to) {
  if (!*from) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}
void forget(void* context) { delete static_cast<ucontext_t*>(context); }

}  // namespace

#endif

// --- Fibers ------------------------------------------------------------------------------------------

Fiber* Fiber::left_ = nullptr;
Fiber* Fiber::running_ = nullptr;

Fiber::~Fiber() {
  forget(at_);
  if (stack_) stacks.free.push_back(stack_);
}

void Fiber::prepare(void (*entry)()) {
  entry_ = entry;
  stack_ = stacks.take();
  bottom_ = stack_;
  size_ = kStackBytes;
  at_ = first_frame(stack_, &Fiber::begin);
}

void Fiber::begin() {
  running_->arrive();
  running_->entry_();
}

void Fiber::leave(Fiber& to, [[maybe_unused]] bool for_good) {
  left_ = this;
  running_ = &to;
#if defined(RNNKERNELS_ADDRESS_SANITIZER)
  if (for_good) __asan_handle_no_return();  // clears the red zones for the next fiber on this stack
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_, to.bottom_, to.size_);
#endif
  switch_stack(&at_, to.at_);
  arrive();
}

// Tells the sanitizer that the switch is complete. It returns the previous fiber's stack, which is the only
// way to learn that of the first fiber.
void Fiber::arrive() {
#if defined(RNNKERNELS_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fake_, &left_->bottom_, &left_->size_);
#endif
}

void Fiber::finish_and_switch_to(Fiber& to) {
  leave(to, true);
  __builtin_unreachable();
}

}  // namespace rnnkernels::emulation
