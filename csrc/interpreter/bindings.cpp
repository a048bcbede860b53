// The Python module _interpreter.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <sstream>

#include "interpreter.h"

namespace py = pybind11;

namespace {

template <class Value>
struct Name {
  const char* name;
  Value value;
};

constexpr Name<ptx::Copies> copies_names[] = {
    {"late", ptx::Copies::late}, {"early", ptx::Copies::early}, {"random", ptx::Copies::random}};
constexpr Name<ptx::Order> order_names[] = {{"forward", ptx::Order::forward},
                                            {"reverse", ptx::Order::reverse},
                                            {"random", ptx::Order::random}};
constexpr Name<ptx::MatrixSum> matrix_sum_names[] = {{"cut_off", ptx::MatrixSum::cut_off},
                                                     {"rounded", ptx::MatrixSum::rounded}};

template <class Value, size_t Count>
const char* name_of(const Name<Value> (&names)[Count], Value value) {
  for (const auto& entry : names)
    if (entry.value == value) return entry.name;
  return "";
}

template <class Value, size_t Count>
void assign(const char* setting, const Name<Value> (&names)[Count],
            const std::optional<std::string>& given, Value& to) {
  if (!given) return;
  std::string accepted;
  for (const auto& entry : names) {
    if (*given == entry.name) {
      to = entry.value;
      return;
    }
    accepted += std::string(accepted.empty() ? "" : ", ") + entry.name;
  }
  throw py::value_error(std::string(setting) + ": got '" + *given + "', expected one of " +
                        accepted);
}

template <class Value>
void assign(const std::optional<Value>& given, Value& to) {
  if (given) to = *given;
}

void set(const std::optional<std::string>& copies, const std::optional<std::string>& warp_order,
         const std::optional<std::string>& lane_order, std::optional<uint64_t> seed,
         const std::optional<std::string>& matrix_sum, std::optional<int> approximation_error,
         std::optional<bool> random_approximation, std::optional<bool> find_races,
         std::optional<bool> find_rewrites, std::optional<bool> check_absent_copies,
         std::optional<uint32_t> shared_bytes_per_block) {
  ptx::Settings settings = ptx::settings();
  assign("copies", copies_names, copies, settings.copies);
  assign("warp_order", order_names, warp_order, settings.warp_order);
  assign("lane_order", order_names, lane_order, settings.lane_order);
  assign(seed, settings.seed);
  assign("matrix_sum", matrix_sum_names, matrix_sum, settings.matrix_sum);
  assign(approximation_error, settings.approximation_error);
  assign(random_approximation, settings.random_approximation);
  assign(find_races, settings.find_races);
  assign(find_rewrites, settings.find_rewrites);
  assign(check_absent_copies, settings.check_absent_copies);
  assign(shared_bytes_per_block, settings.shared_bytes_per_block);
  ptx::set_settings(settings);
}

py::dict settings() {
  const ptx::Settings now = ptx::settings();
  py::dict values;
  values["copies"] = name_of(copies_names, now.copies);
  values["warp_order"] = name_of(order_names, now.warp_order);
  values["lane_order"] = name_of(order_names, now.lane_order);
  values["seed"] = now.seed;
  values["matrix_sum"] = name_of(matrix_sum_names, now.matrix_sum);
  values["approximation_error"] = now.approximation_error;
  values["random_approximation"] = now.random_approximation;
  values["find_races"] = now.find_races;
  values["find_rewrites"] = now.find_rewrites;
  values["check_absent_copies"] = now.check_absent_copies;
  values["shared_bytes_per_block"] = now.shared_bytes_per_block;
  return values;
}

py::dict take_counters() {
  const ptx::Counters taken = ptx::take_counters();
  py::dict values;
#define COUNTER(name) values[#name] = taken.name
  COUNTER(launches);
  COUNTER(blocks);
  COUNTER(warp_instructions);
  COUNTER(global_bytes_read);
  COUNTER(global_bytes_written);
  COUNTER(global_sectors_read);
  COUNTER(global_sectors_written);
  COUNTER(local_bytes_read);
  COUNTER(local_bytes_written);
  COUNTER(shared_load_wavefronts);
  COUNTER(shared_load_wavefronts_ideal);
  COUNTER(shared_store_wavefronts);
  COUNTER(shared_store_wavefronts_ideal);
  COUNTER(copies);
  COUNTER(copy_wavefronts);
  COUNTER(copy_wavefronts_ideal);
  COUNTER(matrices_read);
  COUNTER(matrix_passes);
  COUNTER(matrices_written);
  COUNTER(matrix_write_passes);
  COUNTER(mma_k16);
  COUNTER(mma_k8);
  COUNTER(block_barriers);
  COUNTER(warp_barriers);
#undef COUNTER
  return values;
}

void launch(const std::string& kernel, ptx::Size3 grid, ptx::Size3 block, uint32_t shared_bytes,
            const std::vector<py::bytes>& arguments) {
  const std::vector<std::string> values(arguments.begin(), arguments.end());
  const py::gil_scoped_release release;
  ptx::launch(kernel, grid, block, shared_bytes, values);
}

}  // namespace

PYBIND11_MODULE(_interpreter, module) {
  py::register_exception<ptx::Refusal>(module, "Refusal", PyExc_RuntimeError);

  py::class_<ptx::Finding>(module, "Finding")
      .def_readonly("kind", &ptx::Finding::kind)
      .def_readonly("kernel", &ptx::Finding::kernel)
      .def_readonly("file", &ptx::Finding::file)
      .def_readonly("line", &ptx::Finding::line)
      .def_readonly("source_file", &ptx::Finding::source_file)
      .def_readonly("source_line", &ptx::Finding::source_line)
      .def_readonly("instruction", &ptx::Finding::instruction)
      .def_readonly("detail", &ptx::Finding::detail)
      .def_readonly("count", &ptx::Finding::count)
      .def("__str__", &ptx::Finding::text)
      .def("__repr__", &ptx::Finding::text);

  py::class_<ptx::Line>(module, "Line")
      .def_readonly("line", &ptx::Line::line)
      .def_readonly("instruction", &ptx::Line::instruction)
      .def_readonly("source_file", &ptx::Line::source_file)
      .def_readonly("source_line", &ptx::Line::source_line);

  py::class_<ptx::KernelSummary>(module, "KernelSummary")
      .def_readonly("name", &ptx::KernelSummary::name)
      .def_readonly("file", &ptx::KernelSummary::file)
      .def_readonly("launches", &ptx::KernelSummary::launches)
      .def_readonly("instructions", &ptx::KernelSummary::instructions)
      .def_readonly("executed_instructions", &ptx::KernelSummary::executed_instructions)
      .def_readonly("static_shared_bytes", &ptx::KernelSummary::static_shared_bytes)
      .def_readonly("local_bytes", &ptx::KernelSummary::local_bytes);

  module.def("load", &ptx::load, py::arg("file"), py::arg("text"));
  module.def("unload", &ptx::unload, py::arg("kernel"));
  module.def("decode_all", &ptx::decode_all);
  module.def("permit", &ptx::permit, py::arg("address"), py::arg("bytes"),
             py::arg("writable") = true);
  module.def("forbid", &ptx::forbid, py::arg("address"));
  module.def("forbid_all", &ptx::forbid_all);
  module.def("launch", &launch, py::arg("kernel"), py::arg("grid"), py::arg("block"),
             py::arg("shared_bytes"), py::arg("arguments"));
  module.def("set", &set, py::kw_only(), py::arg("copies") = py::none(),
             py::arg("warp_order") = py::none(), py::arg("lane_order") = py::none(),
             py::arg("seed") = py::none(), py::arg("matrix_sum") = py::none(),
             py::arg("approximation_error") = py::none(),
             py::arg("random_approximation") = py::none(), py::arg("find_races") = py::none(),
             py::arg("find_rewrites") = py::none(), py::arg("check_absent_copies") = py::none(),
             py::arg("shared_bytes_per_block") = py::none());
  module.def("settings", &settings);
  module.def("take_findings", &ptx::take_findings);
  module.def("take_counters", &take_counters);
  module.def("kernels", &ptx::kernels);
  module.def("unexecuted", &ptx::unexecuted, py::arg("kernel"));
}
