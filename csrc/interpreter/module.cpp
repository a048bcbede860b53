#include "module.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

#include "interpreter.h"

namespace ptx {
namespace {

// Replaces comments by spaces; line breaks stay.
std::string without_comments(const std::string& text) {
  std::string result = text;
  const auto blank = [&](size_t from, size_t to) {
    for (size_t i = from; i < to; ++i)
      if (result[i] != '\n') result[i] = ' ';
  };
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != '/') continue;
    size_t end = i;
    if (text[i + 1] == '/') end = std::min(text.find('\n', i), text.size());
    if (text[i + 1] == '*') end = std::min(text.find("*/", i + 2), text.size() - 2) + 2;
    blank(i, end);
    i = std::max(i, end == i ? i : end - 1);
  }
  return result;
}

unsigned number(const std::string& token) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
  if (error != std::errc() || end != token.data() + token.size())
    throw Refusal("expected a number instead of '" + token + "'");
  return value;
}

class ModuleReader {
 public:
  ModuleReader(const std::string& file, const std::string& text)
      : text_(without_comments(text)), module_(std::make_shared<Module>()) {
    module_->file = base_name(file);
  }

  std::vector<Kernel> read() {
    try {
      while (skip_spaces(), at_ < text_.size()) read_top_level();
    } catch (const Refusal& refusal) {
      throw Refusal(module_->file + ":" + std::to_string(line_) + ": " + refusal.what());
    }
    if (!has_version_) throw Refusal(module_->file + ": no PTX, there is no .version");
    for (Kernel& kernel : kernels_) kernel.module = module_;
    return std::move(kernels_);
  }

 private:
  static std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

  void skip_spaces() { move_to(std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size())); }

  void move_to(size_t position) {
    line_ += static_cast<int>(std::count(text_.begin() + std::ptrdiff_t(at_),
                                         text_.begin() + std::ptrdiff_t(position), '\n'));
    at_ = position;
  }

  // The text up to one of `ends`, which is passed over.
  std::string take_until(const char* ends) {
    const size_t end = text_.find_first_of(ends, at_);
    if (end == std::string::npos) throw Refusal("the text ends within a statement");
    const std::string taken = text_.substr(at_, end - at_);
    move_to(end);
    ending_ = text_[end];
    move_to(end + 1);
    return taken;
  }

  // The text up to the brace that closes the one just read.
  std::string take_block() {
    size_t end = at_;
    for (int depth = 1; depth > 0; ++end) {
      if (end == text_.size()) throw Refusal("a brace is not closed");
      if (text_[end] == '{') ++depth;
      if (text_[end] == '}') --depth;
    }
    const std::string taken = text_.substr(at_, end - 1 - at_);
    move_to(end);
    return taken;
  }

  void read_top_level() {
    const size_t word_end = std::min(text_.find_first_of(" \t\r\n(", at_), text_.size());
    const std::string word = text_.substr(at_, word_end - at_);
    if (word == ".version" || word == ".target" || word == ".address_size") {
      has_version_ |= word == ".version";
      move_to(std::min(text_.find('\n', at_), text_.size()));
    } else if (word == ".file") {
      const std::string line = text_.substr(at_, text_.find('\n', at_) - at_);
      move_to(at_ + line.size());
      const size_t open = line.find('"'), close = line.find('"', open + 1);
      if (close == std::string::npos) throw Refusal(".file without a name");
      module_->source_files[static_cast<int>(number(tokens_of(line)[1]))] =
          base_name(line.substr(open + 1, close - open - 1));
    } else {
      const std::string head = take_until(";{");
      const Tokens tokens = tokens_of(head);
      const auto names = [&](const char* directive) {
        return std::find(tokens.begin(), tokens.end(), directive) != tokens.end();
      };
      if (ending_ == '{') {
        const int body_line = line_;
        std::string block = take_block();
        if (names(".entry")) read_kernel(tokens, std::move(block), body_line);
        else if (!names(".section") && !names(".func")) take_until(";");  // an initial value
      } else if (names(".shared")) {
        module_->shared.push_back(read_variable(tokens));
      }
    }
  }

  // .visible .entry name ( parameters ) directives
  void read_kernel(const Tokens& head, std::string body, int body_line) {
    Kernel kernel;
    kernel.body = std::move(body);
    kernel.first_line = body_line;
    auto token = std::find(head.begin(), head.end(), ".entry") + 1;
    if (token == head.end()) throw Refusal(".entry without a name");
    kernel.name = *token++;
    const auto close = std::find(token, head.end(), ")");
    if (token != head.end() && *token == "(") ++token;
    while (token < close) {
      const auto end = std::find(token, close, ",");
      Parameter parameter{read_variable({token, end}), 0};
      parameter.offset = round_up(kernel.parameter_bytes, parameter.variable.alignment);
      kernel.parameter_bytes = parameter.offset + parameter.variable.bytes;
      kernel.parameters.push_back(std::move(parameter));
      token = end == close ? close : end + 1;
    }
    for (token = close; token < head.end(); ++token) {
      if (*token == ".maxntid") {
        const auto sizes = three_numbers(token + 1, head.end());
        kernel.most_threads = sizes[0] * sizes[1] * sizes[2];
      } else if (*token == ".reqntid") {
        kernel.required_block = three_numbers(token + 1, head.end());
      }
    }
    kernels_.push_back(std::move(kernel));
  }

  static std::array<unsigned, 3> three_numbers(Tokens::const_iterator token,
                                               Tokens::const_iterator end) {
    std::array<unsigned, 3> numbers{1, 1, 1};
    for (unsigned& value : numbers) {
      if (token == end) throw Refusal("a number of threads is missing");
      value = number(*token++);
      if (token == end || *token != ",") break;
      ++token;
    }
    return numbers;
  }

  const std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  char ending_ = 0;
  bool has_version_ = false;
  std::shared_ptr<Module> module_;
  std::vector<Kernel> kernels_;
};

}  // namespace

Tokens tokens_of(std::string_view text) {
  const auto in_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' ||
           c == '.' || c == ':';
  };
  Tokens tokens;
  for (size_t i = 0; i < text.size();) {
    if (std::isspace(static_cast<unsigned char>(text[i]))) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < text.size() && in_word(text[end])) ++end;
    end = std::max(end, i + 1);
    tokens.emplace_back(text.substr(i, end - i));
    i = end;
  }
  return tokens;
}

Variable read_variable(const Tokens& tokens) {
  Variable variable;
  uint32_t element = 0, elements = 1;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string& token = tokens[i];
    if (token == ".ptr") {  // says to what memory a pointer points: .ptr .global .align 16
      while (i + 1 < tokens.size() && tokens[i + 1][0] == '.') ++i;
      if (tokens[i] == ".align") ++i;
    } else if (token == ".align" && i + 1 < tokens.size()) {
      variable.alignment = number(tokens[++i]);
    } else if (token[0] == '.') {
      const Type type = type_named(std::string_view(token).substr(1));
      if (type != Type::none) element = static_cast<uint32_t>(bits_of(type)) / 8;
    } else if (token == "[" && i + 1 < tokens.size()) {
      elements = tokens[i + 1] == "]" ? 0 : number(tokens[i + 1]);
      break;
    } else {
      variable.name = token;
    }
  }
  if (variable.name.empty() || element == 0 || variable.alignment == 0)
    throw Refusal("a declaration that is not understood");
  variable.bytes = element * elements;
  variable.alignment = std::max(variable.alignment, element);
  return variable;
}

std::string Kernel::source_file(int number) const {
  const auto found = module->source_files.find(number);
  return found == module->source_files.end() ? "" : found->second;
}

std::vector<Kernel> read_module(const std::string& file, const std::string& text) {
  return ModuleReader(file, text).read();
}

}  // namespace ptx
