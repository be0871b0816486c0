// Numbers that are known at run time, where an instruction or a type needs them as constants.
#pragma once

#include <type_traits>

namespace attn {

// Call body(std::integral_constant<int, i>{}) with the `i` below `count` that `which` is, the same for a whole warp.
// The body asks for decltype(i)::value, as the conversion to int is a function of the host's.
template <int count, int i = 0, typename Body>
__device__ __forceinline__ void with_one_of(int which, const Body& body) {
  if constexpr (i + 1 == count) {
    body(std::integral_constant<int, i>{});
  } else if (which == i) {
    body(std::integral_constant<int, i>{});
  } else {
    with_one_of<count, i + 1>(which, body);
  }
}

}  // namespace attn
