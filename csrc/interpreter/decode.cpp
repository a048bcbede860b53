// The body of a kernel: directives, labels and instructions.
#include <cstring>
#include <exception>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "interpreter.h"
#include "module.h"
#include "opcodes.h"
#include "register_rows.h"
#include "shared_memory.h"
#include "statement.h"

namespace ptx {
namespace {

class BodyDecoder {
 public:
  explicit BodyDecoder(const Kernel& kernel) : kernel_(kernel), symbols_(kernel.parameters) {}

  Program decode() {
    try {
      place_shared_variables();
      location_.line = kernel_.first_line;
      read_body();
      append_exit();
      resolve_labels();
    } catch (const std::exception& error) {
      throw Refusal(kernel_.module->file + ":" + std::to_string(location_.line) + ": " +
                    error.what());
    }
    program_.constants = symbols_.constants();
    program_.specials = symbols_.specials();
    assign_register_rows(program_, symbols_.register_bits());
    return std::move(program_);
  }

 private:
  // Arrays of the module that the kernel names and those that its body declares, those without a
  // size last: they all begin where the memory lies that a launch adds.
  void place_shared_variables() {
    place_shared_of_module(true);
    place_shared_of_body();
    place_shared_of_module(false);
  }

  void place_shared_of_module(bool sized) {
    for (const Variable& variable : kernel_.module->shared)
      if ((variable.bytes > 0) == sized && kernel_.body.find(variable.name) != std::string::npos)
        place_shared(variable);
  }

  void place_shared_of_body() {
    const std::string& body = kernel_.body;
    const std::string directive = ".shared ";
    for (size_t at = body.find(directive); at != std::string::npos;
         at = body.find(directive, at + 1)) {
      const bool begins_statement = at == 0 || std::strchr(" \t\n;{}", body[at - 1]) != nullptr;
      if (begins_statement)
        place_shared(read_variable(tokens_of(body.substr(at, body.find(';', at) - at))));
    }
  }

  void place_shared(const Variable& variable) {
    uint32_t& used = program_.static_shared_bytes;
    used = round_up(used, variable.alignment);
    symbols_.declare_variable(variable.name, SharedMemory::base + used);
    used += variable.bytes;
  }

  void place_local(const Variable& variable) {
    uint32_t& used = program_.local_bytes;
    used = round_up(used, variable.alignment);
    symbols_.declare_variable(variable.name, used);
    used += variable.bytes;
  }

  // A statement ends with a semicolon, a label with a colon, .loc with its line. Braces around
  // statements open a scope of names; those within a statement are lists of operands.
  void read_body() {
    const std::string& body = kernel_.body;
    std::string statement;
    int line_of_statement = location_.line;
    for (size_t i = 0; i < body.size(); ++i) {
      const char c = body[i];
      if (statement.empty()) {
        line_of_statement = location_.line;
        if (c == '{') symbols_.open_scope();
        else if (c == '}' && symbols_.in_inner_scope()) symbols_.close_scope();
        else if (c > ' ' && c != ';') statement += c;
      } else if (c == ';') {
        std::swap(location_.line, line_of_statement);
        read_statement(tokens_of(statement));
        std::swap(location_.line, line_of_statement);
        statement.clear();
      } else if (c == ':' && body[i + 1] != ':' && body[i - 1] != ':') {
        labels_[statement] = static_cast<uint32_t>(program_.code.size());
        statement.clear();
      } else if (c == '\n' && statement.starts_with(".loc")) {
        read_source_location(tokens_of(statement));
        statement.clear();
      } else {
        statement += c;
      }
      if (c == '\n') ++location_.line;
    }
    if (!statement.empty()) throw Refusal("the kernel ends within a statement");
  }

  // .loc file line column
  void read_source_location(const Tokens& tokens) {
    if (tokens.size() < 3) throw Refusal(".loc without a line");
    location_.source_file = std::stoi(tokens[1]);
    location_.source_line = std::stoi(tokens[2]);
  }

  void read_statement(const Tokens& tokens) {
    const std::string& first = tokens[0];
    if (first == ".reg") declare_registers(tokens);
    else if (first == ".local") place_local(read_variable(tokens));
    else if (first == ".pragma" || first == ".shared") return;
    else if (first[0] == '.') throw Refusal("the directive " + first + " is not known");
    else read_instruction(tokens);
  }

  // .reg .b32 %r<10>, %x;
  void declare_registers(const Tokens& tokens) {
    const Type type = tokens.size() > 2 ? type_named(tokens[1].substr(1)) : Type::none;
    if (type == Type::none || bits_of(type) == 8) throw Refusal("registers of an unknown type");
    for (size_t i = 2; i < tokens.size(); ++i) {
      if (tokens[i] == ",") continue;
      const std::string& name = tokens[i];
      if (i + 3 < tokens.size() && tokens[i + 1] == "<") {
        const int count = std::stoi(tokens[i + 2]);
        for (int number = 0; number < count; ++number)
          symbols_.declare_register(name + std::to_string(number), bits_of(type));
        i += 3;
      } else {
        symbols_.declare_register(name, bits_of(type));
      }
    }
  }

  void read_instruction(const Tokens& tokens) {
    Statement statement(tokens, symbols_);
    const Decode decode = find_decoder(statement.opcode());
    if (!decode) statement.refuse("the instruction is not known");
    decode(statement);
    if (statement.instruction.flow == Flow::branch) jumps_.push_back(statement.word());
    statement.finish();
    location_.text = statement.text();
    if (statement.instruction.flow == Flow::branch)
      jump_places_.push_back(static_cast<uint32_t>(program_.code.size()));
    program_.code.push_back(statement.instruction);
    program_.locations.push_back(location_);
  }

  void append_exit() {
    Instruction end;
    end.flow = Flow::exit;
    location_.text = "end of the kernel";
    program_.code.push_back(end);
    program_.locations.push_back(location_);
  }

  void resolve_labels() {
    for (size_t i = 0; i < jumps_.size(); ++i) {
      const auto label = labels_.find(jumps_[i]);
      location_.line = program_.locations[jump_places_[i]].line;
      if (label == labels_.end()) throw Refusal("the label " + jumps_[i] + " does not exist");
      program_.code[jump_places_[i]].target = label->second;
    }
  }

  const Kernel& kernel_;
  Symbols symbols_;
  Program program_;
  Location location_;
  std::map<std::string, uint32_t> labels_;
  std::vector<std::string> jumps_;     // names of labels
  std::vector<uint32_t> jump_places_;  // instructions that jump there
};

}  // namespace

Program decode(const Kernel& kernel) { return BodyDecoder(kernel).decode(); }

Decode find_decoder(const std::string& opcode) {
  static const std::map<std::string, Decode> decoders = [] {
    std::map<std::string, Decode> all;
    for (const std::span<const OpcodeDecoder> family :
         {integer_opcodes(), floating_opcodes(), comparison_opcodes(), conversion_opcodes(),
          memory_opcodes(), copy_opcodes(), matrix_opcodes(), warp_opcodes()})
      for (const OpcodeDecoder& entry : family) all.emplace(entry.opcode, entry.decode);
    return all;
  }();
  const auto found = decoders.find(opcode);
  return found == decoders.end() ? nullptr : found->second;
}

}  // namespace ptx
