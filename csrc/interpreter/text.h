// Numbers as words for messages.
#pragma once
#include <array>
#include <charconv>
#include <cstdint>
#include <string>

namespace ptx {

inline std::string hexadecimal(uint64_t value) {
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value, 16).ptr;
  return "0x" + std::string(digits, end);
}

inline std::string text_of(const std::array<unsigned, 3>& size) {
  return "(" + std::to_string(size[0]) + ", " + std::to_string(size[1]) + ", " +
         std::to_string(size[2]) + ")";
}

}  // namespace ptx
