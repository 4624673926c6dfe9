// The CUDA kernels, kernels.inc, for the CPU, with a launcher that finds one by its name.
// instances.inc holds a line KERNEL(name<arguments>) for each.
#include "warp_shim.h"

#include "kernels.inc"

#include <cstring>
#include <utility>

template <class... Types, std::size_t... At>
void call(
    void (*kernel)(Types...), unsigned x, unsigned y, unsigned threads, void** arguments,
    std::index_sequence<At...>) {
  shim::launch({x, y, 1}, threads, [=] {
    kernel(*static_cast<std::remove_cv_t<Types>*>(arguments[At])...);
  });
}

template <class... Types>
void call(void (*kernel)(Types...), unsigned x, unsigned y, unsigned threads, void** arguments) {
  call(kernel, x, y, threads, arguments, std::index_sequence_for<Types...>());
}

// The arguments are as cuLaunchKernel takes them: a pointer to each. False: no such kernel.
extern "C" bool emulate(
    const char* name, unsigned x, unsigned y, unsigned threads, void** arguments) {
#define KERNEL(...)                                    \
  if (std::strcmp(name, #__VA_ARGS__) == 0) {          \
    call(&__VA_ARGS__, x, y, threads, arguments);      \
    return true;                                       \
  }
#include "instances.inc"
  return false;
}
