#include "statement.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

#include "interpreter.h"

namespace ptx {
namespace {

struct NamedType {
  std::string_view name;
  Type type;
};
constexpr NamedType types[] = {
    {"pred", Type::pred},     {"b8", Type::b8},   {"b16", Type::b16},     {"b32", Type::b32},
    {"b64", Type::b64},       {"u8", Type::u8},   {"u16", Type::u16},     {"u32", Type::u32},
    {"u64", Type::u64},       {"s8", Type::s8},   {"s16", Type::s16},     {"s32", Type::s32},
    {"s64", Type::s64},       {"f16", Type::f16}, {"f16x2", Type::f16x2}, {"bf16", Type::bf16},
    {"bf16x2", Type::bf16x2}, {"f32", Type::f32}};

// PTX ISA, "Special Registers".
struct NamedSpecial {
  std::string_view name;
  Special special;
};
constexpr NamedSpecial special_registers[] = {
    {"%tid.x", Special::tid_x},       {"%tid.y", Special::tid_y},
    {"%tid.z", Special::tid_z},       {"%ctaid.x", Special::ctaid_x},
    {"%ctaid.y", Special::ctaid_y},   {"%ctaid.z", Special::ctaid_z},
    {"%ntid.x", Special::ntid_x},     {"%ntid.y", Special::ntid_y},
    {"%ntid.z", Special::ntid_z},     {"%nctaid.x", Special::nctaid_x},
    {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
    {"%laneid", Special::laneid},     {"%warpid", Special::warpid}};

uint64_t low_bits(uint64_t value, int bits) {
  return bits >= 64 ? value : value & ((uint64_t{1} << bits) - 1);
}

}  // namespace

Type type_named(std::string_view name) {
  const auto found = std::find_if(std::begin(types), std::end(types),
                                  [&](const NamedType& entry) { return entry.name == name; });
  return found == std::end(types) ? Type::none : found->type;
}

// ---- symbols ------------------------------------------------------------------------------------

Symbols::Symbols(const std::vector<Parameter>& parameters) {
  open_scope();
  for (const Parameter& parameter : parameters)
    declare_variable(parameter.variable.name, parameter.offset);
}

void Symbols::declare_register(const std::string& name, int bits) {
  scopes_.back()[name] = {static_cast<int32_t>(register_bits_.size()), bits};
  register_bits_.push_back(bits);
}

Operand Symbols::sink(int bits) {
  const std::string name = "_" + std::to_string(bits);
  if (const auto found = scopes_.front().find(name); found != scopes_.front().end())
    return {found->second.number};
  scopes_.front()[name] = {static_cast<int32_t>(register_bits_.size()), bits};
  register_bits_.push_back(bits);
  return {scopes_.front()[name].number};
}

void Symbols::declare_variable(const std::string& name, uint32_t address) {
  variables_[name] = address;
}

const Register* Symbols::find_register(const std::string& name) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (const auto found = scope->find(name); found != scope->end()) return &found->second;
  for (const NamedSpecial& entry : special_registers) {
    if (entry.name != name) continue;
    const Register fresh{static_cast<int32_t>(register_bits_.size()), 32};
    register_bits_.push_back(32);
    specials_.push_back({entry.special, {fresh.number}});
    return &(scopes_.front()[name] = fresh);
  }
  return nullptr;
}

const uint32_t* Symbols::find_variable(const std::string& name) const {
  const auto found = variables_.find(name);
  return found == variables_.end() ? nullptr : &found->second;
}

Operand Symbols::constant(uint64_t value, int bits) {
  const auto [place, fresh] = constant_places_.try_emplace({value, bits});
  if (!fresh) return place->second;
  place->second.at = ~static_cast<int32_t>(constants_.size());
  if (bits == 1) {
    const LaneMask mask = value & 1 ? all_lanes : 0;
    constants_.resize(constants_.size() + 64);  // a multiple keeps rows aligned
    std::memcpy(&constants_[static_cast<size_t>(~place->second.at)], &mask, sizeof(mask));
    return place->second;
  }
  const size_t bytes = static_cast<size_t>(bits) / 8;
  for (unsigned lane = 0; lane < lanes_per_warp; ++lane) {
    const auto* const first = reinterpret_cast<const std::byte*>(&value);
    constants_.insert(constants_.end(), first, first + bytes);
  }
  return place->second;
}

// ---- statements ---------------------------------------------------------------------------------

Statement::Statement(Tokens tokens, Symbols& symbols)
    : tokens_(std::move(tokens)), symbols_(symbols) {
  if (take_symbol('@')) {
    instruction.guard_negated = take_symbol('!');
    int bits = 0;
    instruction.guard = read_operand(Type::pred, bits, true);
  }
  text_ = word();
  for (size_t from = 0; from <= text_.size();) {
    const size_t to = std::min(text_.find('.', from), text_.size());
    parts_.push_back(text_.substr(from, to - from));
    from = to + 1;
  }
}

bool Statement::take(std::string_view modifier) {
  const auto found = std::find(parts_.begin() + 1, parts_.end(), modifier);
  if (found == parts_.end()) return false;
  found->clear();
  return true;
}

void Statement::require(std::string_view modifier) {
  if (!take(modifier)) refuse("without ." + std::string(modifier) + " it is not known");
}

Type Statement::take_type() {
  for (auto part = parts_.begin() + 1; part != parts_.end(); ++part) {
    const Type type = type_named(*part);
    if (type == Type::none) continue;
    part->clear();
    return type;
  }
  refuse("its type is missing or not known");
}

const std::string& Statement::next() const {
  if (at_end()) refuse("an operand is missing");
  return tokens_[next_];
}

bool Statement::next_is(char symbol) const {
  return !at_end() && tokens_[next_] == std::string_view(&symbol, 1);
}

bool Statement::take_symbol(char symbol) {
  if (!next_is(symbol)) return false;
  ++next_;
  return true;
}

void Statement::comma() {
  if (!take_symbol(',')) refuse("expected a comma");
}

std::string Statement::word() {
  const std::string taken = next();
  ++next_;
  return taken;
}

// PTX ISA, "Constants": integers, and floats as 0f with the digits of their bits.
bool Statement::parse_number(Type type, uint64_t& value) {
  const size_t start = next_;
  const bool negative = take_symbol('-');
  const std::string token = at_end() ? std::string() : tokens_[next_];
  const bool is_number = !token.empty() && std::isdigit(static_cast<unsigned char>(token[0]));
  if (!is_number) {
    next_ = start;
    return false;
  }
  ++next_;
  const char* digits = token.c_str();
  int base = 0;
  const bool is_float = token.size() == 10 && (token[1] == 'f' || token[1] == 'F');
  if (is_float) digits += 2, base = 16;
  char* end = nullptr;
  value = std::strtoull(digits, &end, base);
  if (*end == 'U') ++end;
  if (*end != 0 || (is_float ? bits_of(type) != 32 : type == Type::f32))
    refuse("the number " + token);
  if (negative) value = 0 - value;
  return true;
}

int64_t Statement::number() {
  uint64_t value = 0;
  if (!parse_number(Type::b64, value)) refuse("expected a number instead of " + next());
  return static_cast<int64_t>(value);
}

// `exact`: the register must have the bits of the type, otherwise at least as many.
Operand Statement::read_operand(Type type, int& bits, bool exact) {
  bits = bits_of(type);
  uint64_t value = 0;
  if (parse_number(type, value)) return symbols_.constant(low_bits(value, bits), bits);
  const std::string name = word();
  if (const Register* found = symbols_.find_register(name)) {
    if (exact ? found->bits != bits : found->bits < bits || found->bits == 1)
      refuse(name + " has " + std::to_string(found->bits) + " bits");
    bits = found->bits;
    return {found->number};
  }
  if (const uint32_t* address = symbols_.find_variable(name))
    return symbols_.constant(*address, bits);
  refuse("the operand " + name);
}

Operand Statement::write_operand(Type type, int& bits, bool exact) {
  const std::string name = word();
  const Register* const found = symbols_.find_register(name);
  if (!found) refuse("the operand " + name);
  if (exact ? found->bits != bits_of(type) : found->bits < bits_of(type) || found->bits == 1)
    refuse(name + " has " + std::to_string(found->bits) + " bits");
  bits = found->bits;
  return {found->number};
}

void Statement::write(int destination, Type type) {
  int bits = 0;
  instruction.destinations[destination] = write_operand(type, bits, true);
}

void Statement::read(int source, Type type) {
  int bits = 0;
  instruction.sources[source] = read_operand(type, bits, true);
}

void Statement::read_constant(int source, uint64_t value, Type type) {
  instruction.sources[source] = symbols_.constant(value, bits_of(type));
}

void Statement::write_then_read(Type destination, std::initializer_list<Type> sources) {
  write(0, destination);
  int source = 0;
  for (const Type type : sources) {
    comma();
    read(source++, type);
  }
}

int Statement::write_any(int destination, Type type) {
  int bits = 0;
  instruction.destinations[destination] = write_operand(type, bits, false);
  return bits;
}

int Statement::read_any(int source, Type type) {
  int bits = 0;
  instruction.sources[source] = read_operand(type, bits, false);
  return bits;
}

void Statement::read_predicate(int source, bool& negated) {
  negated = take_symbol('!');
  read(source, Type::pred);
}

int Statement::write_list(int first, int most, Type type) {
  const bool braces = take_symbol('{');
  int count = 0, bits = 0;
  uint32_t sinks = 0;  // parts that nobody wants, named _
  do {
    if (count == most) refuse("too many operands");
    if (!at_end() && next() == "_") {
      word();
      sinks |= 1u << count;
    } else {
      bits = write_any(first + count, type);
      instruction.register_bytes[count] = static_cast<uint8_t>(bits / 8);
    }
    ++count;
  } while (braces && take_symbol(','));
  if (braces && !take_symbol('}')) refuse("expected }");
  // They are as wide as the others.
  for (int part = 0; part < count; ++part) {
    if (!(sinks >> part & 1)) continue;
    if (bits == 0) refuse("nothing but _");
    instruction.destinations[first + part] = symbols_.sink(bits);
    instruction.register_bytes[part] = static_cast<uint8_t>(bits / 8);
  }
  return count;
}

int Statement::read_list(int first, int most, Type type) {
  const bool braces = take_symbol('{');
  int count = 0;
  do {
    if (count == most) refuse("too many operands");
    const int bits = read_any(first + count, type);
    if (count < 4) instruction.register_bytes[count] = static_cast<uint8_t>(bits / 8);
    ++count;
  } while (braces && take_symbol(','));
  if (braces && !take_symbol('}')) refuse("expected }");
  return count;
}

int Statement::address(int source, int64_t& offset) {
  if (!take_symbol('[')) refuse("expected an address");
  const bool is_variable = symbols_.find_variable(next()) != nullptr;
  const int bits = read_any(source, is_variable ? Type::b64 : Type::b32);
  offset = 0;
  while (take_symbol('+')) offset += number();
  if (!at_end() && next() == "-") offset += number();
  if (!take_symbol(']')) refuse("expected ]");
  return bits;
}

void Statement::finish() {
  for (auto part = parts_.begin() + 1; part != parts_.end(); ++part)
    if (!part->empty()) refuse("the modifier ." + *part);
  if (!at_end()) refuse("more operands than expected");
}

void Statement::refuse(const std::string& why) const {
  throw Refusal("cannot decode " + text_ + ": " + why);
}

}  // namespace ptx
