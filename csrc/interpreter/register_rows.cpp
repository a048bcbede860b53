#include "register_rows.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>

namespace ptx {
namespace {

// ---- sets of registers --------------------------------------------------------------------------

class RegisterSet {
 public:
  explicit RegisterSet(size_t registers) : words_((registers + 63) / 64) {}

  bool contains(int32_t number) const { return words_[word(number)] >> (number % 64) & 1; }
  void insert(int32_t number) { words_[word(number)] |= uint64_t{1} << (number % 64); }
  void erase(int32_t number) { words_[word(number)] &= ~(uint64_t{1} << (number % 64)); }

  // Says whether that added something.
  bool insert_all(const RegisterSet& others) {
    bool added = false;
    for (size_t i = 0; i < words_.size(); ++i) {
      added |= (others.words_[i] & ~words_[i]) != 0;
      words_[i] |= others.words_[i];
    }
    return added;
  }

  template <class Use>
  void for_each(Use use) const {
    for (size_t i = 0; i < words_.size(); ++i)
      for (uint64_t rest = words_[i]; rest != 0; rest &= rest - 1)
        use(static_cast<int32_t>(64 * i) + std::countr_zero(rest));
  }

 private:
  static size_t word(int32_t number) { return static_cast<size_t>(number) / 64; }

  std::vector<uint64_t> words_;
};

template <class Use>
void for_registers_read(const Instruction& in, Use use) {
  for (const Operand& source : in.sources)
    if (source.is_register()) use(source.at);
  if (in.guard.is_register()) use(in.guard.at);
}

template <class Use>
void for_registers_written(const Instruction& in, Use use) {
  for (const Operand& destination : in.destinations)
    if (destination.is_register()) use(destination.at);
}

// ---- which registers are needed where -----------------------------------------------------------

// A run of instructions that is entered at its beginning and left at its end.
struct Stretch {
  size_t begin = 0, end = 0;
  std::vector<size_t> successors;
};

std::vector<Stretch> stretches_of(const std::vector<Instruction>& code) {
  std::vector<bool> begins(code.size() + 1, false);
  begins[0] = begins[code.size()] = true;
  for (size_t i = 0; i < code.size(); ++i) {
    if (code[i].flow == Flow::branch) begins[code[i].target] = true;
    if (code[i].flow == Flow::branch || code[i].flow == Flow::exit) begins[i + 1] = true;
  }
  std::vector<Stretch> stretches;
  std::vector<size_t> stretch_at(code.size());
  for (size_t i = 0; i < code.size(); ++i) {
    if (begins[i]) stretches.push_back({i, i, {}});
    stretches.back().end = i + 1;
    stretch_at[i] = stretches.size() - 1;
  }
  for (size_t s = 0; s < stretches.size(); ++s) {
    const Instruction& last = code[stretches[s].end - 1];
    if (last.flow == Flow::branch) stretches[s].successors.push_back(stretch_at[last.target]);
    const bool goes_on =
        (last.flow != Flow::branch && last.flow != Flow::exit) || last.guard.exists();
    if (goes_on && s + 1 < stretches.size()) stretches[s].successors.push_back(s + 1);
  }
  return stretches;
}

// Turns what is needed after an instruction into what is needed before it. Lanes that a guard holds
// back keep what the destination was.
void step_back(const Instruction& in, RegisterSet& needed) {
  if (!in.guard.exists()) for_registers_written(in, [&](int32_t r) { needed.erase(r); });
  for_registers_read(in, [&](int32_t r) { needed.insert(r); });
}

// The registers that are needed at the end of each stretch.
std::vector<RegisterSet> needed_at_ends(const std::vector<Instruction>& code,
                                        const std::vector<Stretch>& stretches, size_t registers) {
  std::vector<RegisterSet> at_end(stretches.size(), RegisterSet(registers));
  std::vector<RegisterSet> at_begin = at_end;
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t s = stretches.size(); s-- > 0;) {
      for (const size_t next : stretches[s].successors)
        changed |= at_end[s].insert_all(at_begin[next]);
      RegisterSet needed = at_end[s];
      for (size_t i = stretches[s].end; i-- > stretches[s].begin;) step_back(code[i], needed);
      at_begin[s].insert_all(needed);
    }
  }
  return at_end;
}

// From the first to the last instruction at which a register holds something that is needed.
struct Span {
  size_t first = SIZE_MAX, last = 0;

  bool is_empty() const { return first > last; }
  void include(size_t at) {
    first = std::min(first, at);
    last = std::max(last, at);
  }
};

std::vector<Span> spans_of(const std::vector<Instruction>& code, size_t registers) {
  const std::vector<Stretch> stretches = stretches_of(code);
  const std::vector<RegisterSet> at_end = needed_at_ends(code, stretches, registers);
  std::vector<Span> spans(registers);
  for (size_t s = 0; s < stretches.size(); ++s) {
    const auto [begin, end, successors] = stretches[s];
    RegisterSet needed = at_end[s];
    needed.for_each([&](int32_t r) { spans[static_cast<size_t>(r)].include(end - 1); });
    for (size_t i = end; i-- > begin;) {
      const auto include = [&](int32_t r) { spans[static_cast<size_t>(r)].include(i); };
      for_registers_read(code[i], include);
      for_registers_written(code[i], include);
      step_back(code[i], needed);
    }
    needed.for_each([&](int32_t r) { spans[static_cast<size_t>(r)].include(begin); });
  }
  return spans;
}

// ---- rows ---------------------------------------------------------------------------------------

uint32_t row_bytes(int bits) {
  return bits == 1 ? sizeof(LaneMask) : static_cast<uint32_t>(bits) / 8 * lanes_per_warp;
}

// Hands out rows of each width; those given back are handed out again, the last one first.
class Rows {
 public:
  int32_t take(int bits) {
    std::vector<int32_t>& free = free_[bits];
    if (free.empty()) {
      const uint32_t bytes = row_bytes(bits);
      bytes_ = (bytes_ + bytes - 1) / bytes * bytes;
      free.push_back(static_cast<int32_t>(bytes_));
      bytes_ += bytes;
    }
    const int32_t row = free.back();
    free.pop_back();
    return row;
  }
  void give_back(int32_t row, int bits) { free_[bits].push_back(row); }
  uint32_t bytes() const { return bytes_; }

 private:
  std::map<int, std::vector<int32_t>> free_;
  uint32_t bytes_ = 0;
};

std::vector<int32_t> rows_of(std::vector<Span> spans, const std::vector<int>& bits,
                             uint32_t& bytes) {
  std::vector<size_t> by_first, by_last;
  for (size_t r = 0; r < spans.size(); ++r)
    if (!spans[r].is_empty()) by_first.push_back(r);
  by_last = by_first;
  std::sort(by_first.begin(), by_first.end(),
            [&](size_t a, size_t b) { return spans[a].first < spans[b].first; });
  std::sort(by_last.begin(), by_last.end(),
            [&](size_t a, size_t b) { return spans[a].last < spans[b].last; });
  std::vector<int32_t> rows(spans.size(), 0);
  Rows places;
  auto finished = by_last.begin();
  for (const size_t r : by_first) {
    for (; spans[*finished].last < spans[r].first; ++finished)
      places.give_back(rows[*finished], bits[*finished]);
    rows[r] = places.take(bits[r]);
  }
  bytes = (places.bytes() + 63) / 64 * 64;
  return rows;
}

}  // namespace

void assign_register_rows(Program& program, const std::vector<int>& bits) {
  std::vector<Span> spans = spans_of(program.code, bits.size());
  // Special registers are filled once for all.
  for (const SpecialRegister& special : program.specials) {
    Span& span = spans[static_cast<size_t>(special.place.at)];
    span.include(0);
    span.include(program.code.size());
  }
  const std::vector<int32_t> rows = rows_of(std::move(spans), bits, program.register_bytes);
  const auto place = [&](Operand& operand) {
    if (operand.is_register()) operand.at = rows[static_cast<size_t>(operand.at)];
  };
  for (Instruction& in : program.code) {
    for (Operand& operand : in.destinations) place(operand);
    for (Operand& operand : in.sources) place(operand);
    place(in.guard);
  }
  for (SpecialRegister& special : program.specials) place(special.place);
}

}  // namespace ptx
