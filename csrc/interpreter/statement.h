// One instruction of PTX on its way from text to an Instruction.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "instruction.h"
#include "module.h"
#include "number_formats.h"

namespace ptx {

struct Register {
  int32_t number = 0;
  int bits = 0;
};

// The names of a kernel and what has been given a place for them.
class Symbols {
 public:
  explicit Symbols(const std::vector<Parameter>& parameters);

  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }
  bool in_inner_scope() const { return scopes_.size() > 1; }

  // A register that takes what nobody wants.
  Operand sink(int bits);
  void declare_register(const std::string& name, int bits);
  void declare_variable(const std::string& name, uint32_t address);

  // Null if the name is unknown.
  const Register* find_register(const std::string& name);
  // The address of a variable or parameter in its space; null if the name is unknown.
  const uint32_t* find_variable(const std::string& name) const;

  // The operand that has this value in all lanes.
  Operand constant(uint64_t value, int bits);

  // Bits of each register, by its number.
  const std::vector<int>& register_bits() const { return register_bits_; }
  const std::vector<SpecialRegister>& specials() const { return specials_; }
  const std::vector<std::byte>& constants() const { return constants_; }

 private:
  std::vector<std::unordered_map<std::string, Register>> scopes_;
  std::unordered_map<std::string, uint32_t> variables_;
  std::vector<int> register_bits_;
  std::vector<SpecialRegister> specials_;
  std::vector<std::byte> constants_;
  std::map<std::pair<uint64_t, int>, Operand> constant_places_;
};

// Opcode, modifiers and operands are taken from left to right; what nobody has taken at the end is
// refused, so that no modifier is passed over.
class Statement {
 public:
  Statement(Tokens tokens, Symbols& symbols);

  Instruction instruction;

  const std::string& opcode() const { return parts_[0]; }
  const std::string& text() const { return text_; }  // opcode with modifiers

  // Takes the modifier, named without its dot, and says whether it was there.
  bool take(std::string_view modifier);
  void require(std::string_view modifier);
  // Takes the first modifier left that names a type.
  Type take_type();

  // Operands. Their registers must have as many bits as the type.
  void write(int destination, Type type);
  void read(int source, Type type);
  void write_then_read(Type destination, std::initializer_list<Type> sources);
  void read_constant(int source, uint64_t value, Type type);
  // For instructions whose registers may be wider than the type. They return the register's bits.
  int write_any(int destination, Type type);
  int read_any(int source, Type type);
  void read_predicate(int source, bool& negated);
  // A list in braces, or one operand. Returns how many there were.
  int write_list(int first, int most, Type type);
  int read_list(int first, int most, Type type);
  // [base + offset]: a register, variable or parameter to a source, the number to `offset`. Returns
  // the bits of the base.
  int address(int source, int64_t& offset);
  int64_t number();
  std::string word();

  void comma();
  bool take_symbol(char symbol);  // takes it if it is next
  bool next_is(char symbol) const;
  bool at_end() const { return next_ == tokens_.size(); }
  void finish();

  [[noreturn]] void refuse(const std::string& why) const;

 private:
  const std::string& next() const;
  bool parse_number(Type type, uint64_t& value);
  Operand read_operand(Type type, int& bits, bool exact);
  Operand write_operand(Type type, int& bits, bool exact);

  Tokens tokens_;
  size_t next_ = 0;
  std::string text_;
  std::vector<std::string> parts_;  // of the opcode; those taken are empty
  Symbols& symbols_;
};

// Decodes the operands and modifiers of one opcode.
using Decode = void (*)(Statement& statement);

// The decoder of an opcode, such as "add"; null if it is unknown. The tables are in the files that
// execute the instructions.
Decode find_decoder(const std::string& opcode);

struct OpcodeDecoder {
  const char* opcode;
  Decode decode;
};

}  // namespace ptx
