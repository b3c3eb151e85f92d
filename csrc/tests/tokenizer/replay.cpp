// Runs the fuzz targets without a fuzzer:
//
//   tokenizer_replay TARGET --mutate SEED COUNT   mutants of the seeds, the same for the same SEED
//   tokenizer_replay TARGET --seeds DIRECTORY     writes the seeds, a fuzzer's first corpus
//   tokenizer_replay TARGET FILE…                 what a fuzzer has found
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "tests/tokenizer/targets.h"

namespace {

using llmjp::tests::Target;

void run(const Target& target, const std::string& input) {
  target.run(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

std::string mutant(const std::vector<std::string>& seeds, std::mt19937_64& random) {
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % limit); };
  std::string input = seeds[below(seeds.size())];
  for (size_t changes = below(5); changes > 0 && !input.empty(); --changes) {
    const size_t place = below(input.size());
    switch (below(5)) {
      case 0:
        input[place] = static_cast<char>(input[place] ^ 1 << below(8));
        break;
      case 1:
        input[place] = static_cast<char>(below(256));
        break;
      case 2:
        input.erase(place, 1 + below(40));
        break;
      case 3: {
        const std::string& other = seeds[below(seeds.size())];
        input.insert(place, other, below(other.size()), 1 + below(40));
        break;
      }
      default:
        input.resize(place);
    }
  }
  return input;
}

[[noreturn]] void usage(const char* program) {
  std::fprintf(
      stderr, "usage: %s files|search|decode (--mutate SEED COUNT | --seeds DIRECTORY | FILE...)\n",
      program);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  const Target* const target = argc > 2 ? llmjp::tests::find_target(argv[1]) : nullptr;
  if (target == nullptr) usage(argv[0]);
  const std::string mode = argv[2];
  if (mode == "--mutate") {
    if (argc != 5) usage(argv[0]);
    const std::vector<std::string> seeds = target->seeds();
    std::mt19937_64 random(std::strtoull(argv[3], nullptr, 10));
    for (const std::string& seed : seeds) run(*target, seed);
    for (auto left = std::strtoull(argv[4], nullptr, 10); left > 0; --left)
      run(*target, mutant(seeds, random));
    return 0;
  }
  if (mode == "--seeds") {
    if (argc != 4) usage(argv[0]);
    int number = 0;
    for (const std::string& seed : target->seeds()) {
      std::ofstream file(std::string(argv[3]) + "/seed" + std::to_string(number++),
                         std::ios::binary);
      if (!file.write(seed.data(), static_cast<std::streamsize>(seed.size()))) {
        std::fprintf(stderr, "%s: cannot write to %s\n", argv[0], argv[3]);
        return 1;
      }
    }
    return 0;
  }
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s: cannot read %s\n", argv[0], argv[i]);
      return 1;
    }
    run(*target, {std::istreambuf_iterator<char>(file), {}});
  }
  return 0;
}
