#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// void llmjp_simt_switch(void** save, void* load)
//
// Pushes the callee-saved registers, stores the stack pointer in *save, takes `load` as the stack
// pointer and pops the registers that the other fiber pushed. The floating-point control words are
// shared by all fibers and not saved.
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl llmjp_simt_switch
.hidden llmjp_simt_switch
.type llmjp_simt_switch, @function
llmjp_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size llmjp_simt_switch, .-llmjp_simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl llmjp_simt_switch
.hidden llmjp_simt_switch
.type llmjp_simt_switch, %function
llmjp_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size llmjp_simt_switch, .-llmjp_simt_switch
)");
#else
#error "csrc/simt switches fibers on x86-64 and aarch64 only"
#endif

extern "C" void llmjp_simt_switch(void** save, void* load);

namespace llmjp::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 * 1024;  // redzones make every frame several times larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// The two ends of the switch under way: enter() starts on an empty stack and has no other way to
// know them.
thread_local Fiber* entering = nullptr;
thread_local Fiber* leaving = nullptr;

}  // namespace

FiberStack::FiberStack(size_t bytes) : bytes_(bytes) {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapping_ = mmap(nullptr, bytes + guard, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, guard, PROT_NONE);
  bottom_ = static_cast<char*>(mapping_) + guard;
}

FiberStack::~FiberStack() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(mapping_, bytes_ + guard);
}

FiberStack* FiberStackPool::take() {
  if (free_.empty()) {
    all_.push_back(std::make_unique<FiberStack>(kStackBytes));
    return all_.back().get();
  }
  FiberStack* stack = free_.back();
  free_.pop_back();
  return stack;
}

void FiberStackPool::give_back(FiberStack* stack, [[maybe_unused]] bool abandoned) {
#if defined(__SANITIZE_ADDRESS__)
  // The frames that never returned have left their redzones marked: those of an ended fiber's entry
  // at the top, those of an abandoned one anywhere.
  constexpr size_t kEntryFrames = 4096;
  const size_t marked = abandoned ? stack->bytes() : kEntryFrames;
  __asan_unpoison_memory_region(static_cast<char*>(stack->bottom()) + stack->bytes() - marked,
                                marked);
#endif
  free_.push_back(stack);
}

void Fiber::start(FiberStack* stack, Entry entry, void* argument) {
  stack_ = stack;
  entry_ = entry;
  argument_ = argument;
#if defined(__SANITIZE_ADDRESS__)
  sanitizer_bottom_ = stack->bottom();
  sanitizer_bytes_ = stack->bytes();
  sanitizer_fake_stack_ = nullptr;
#endif
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(stack->bottom()) + stack->bytes());
  void (*first)() = &Fiber::enter;
#if defined(__x86_64__)
  // Six registers, the address that `ret` takes, and one word so that enter() sees the stack as
  // after a call.
  uint64_t* frame = top - 8;
  std::memset(frame, 0, 8 * sizeof(uint64_t));
  std::memcpy(frame + 6, &first, sizeof(first));
#else
  uint64_t* frame = top - 20;
  std::memset(frame, 0, 20 * sizeof(uint64_t));
  std::memcpy(frame + 11, &first, sizeof(first));  // x30, the return address
#endif
  stack_pointer_ = frame;
}

// Tells the sanitizer that the switch has happened. The operating-system thread's own stack has no
// FiberStack: its limits are learnt here, when it is left for the first time.
void Fiber::finish_switch([[maybe_unused]] Fiber& now) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(now.sanitizer_fake_stack_, &bottom, &bytes);
  if (leaving->stack_ == nullptr) {
    leaving->sanitizer_bottom_ = bottom;
    leaving->sanitizer_bytes_ = bytes;
  }
#endif
}

void Fiber::enter() {
  Fiber* self = entering;
  finish_switch(*self);
  self->entry_(self->argument_);
  std::abort();  // an entry that returns has no caller to return to
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool from_is_done) {
  entering = &to;
  leaving = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_is_done ? nullptr : &from.sanitizer_fake_stack_,
                                 to.sanitizer_bottom_, to.sanitizer_bytes_);
#endif
  llmjp_simt_switch(&from.stack_pointer_, to.stack_pointer_);
  finish_switch(from);
}

}  // namespace llmjp::simt
