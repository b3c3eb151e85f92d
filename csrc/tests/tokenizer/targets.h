// What is fuzzed of the tokenizer: functions that take any bytes, and abort where a promise is
// broken. libFuzzer drives them (fuzzer.cpp), and a small driver with plain mutations (replay.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llmjp::tests {

struct Target {
  std::string_view name;
  void (*run)(const uint8_t* data, size_t size);
  std::vector<std::string> (*seeds)();
};

// Files of all formats, told apart by the first byte: a FormatError of one line, or a tokenizer
// whose searches agree on some hard texts, whose compiled form gives the same, and which decodes.
extern const Target kFilesTarget;
// Texts: the search by units, for each instruction set and width of characters, the plain search
// and a third one that is written down here give the same ids.
extern const Target kSearchTarget;
// Ids: decode() and a stream give the same text, which is valid UTF-8.
extern const Target kDecodeTarget;

const Target* find_target(std::string_view name);  // null where there is none

// Aborts with a message where `holds` is false.
void require(bool holds, const std::string& promise);

}  // namespace llmjp::tests
