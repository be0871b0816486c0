// A check of arguments whose failure is a RuntimeError in Python.
#pragma once

#include <concepts>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace attn {

inline std::string text_of(const char* text) {
  return text;
}
inline std::string text_of(const std::string& text) {
  return text;
}
inline std::string text_of(std::integral auto number) {
  return std::to_string(number);
}

inline std::string text_of(std::floating_point auto number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", static_cast<double>(number));
  return text;
}

template <typename... Parts>
std::string sentence(const Parts&... parts) {
  return (std::string() + ... + text_of(parts));
}

}  // namespace attn

// Raise what the other arguments say, one after the other, unless `condition` holds; they are evaluated only then.
//
// Not STD_TORCH_CHECK, which prints numbers to a stream. Where the toolchain puts a C++ library of its own into the
// extension, its streams take their locale from one library and the index of what they need of it from the other:
// in such a build a failed check ended the process (torch 2.11, GCC 13), elsewhere it lost the rest of its message.
#define ATTN_CHECK(condition, ...)                                             \
  do {                                                                         \
    if (!(condition)) throw std::runtime_error(::attn::sentence(__VA_ARGS__)); \
  } while (false)

// The same for a call of the shim, in the place of TORCH_ERROR_CODE_CHECK.
#define ATTN_CALL(call) ATTN_CHECK((call) == TORCH_SUCCESS, #call, " failed")
