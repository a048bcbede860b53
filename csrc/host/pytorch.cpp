#include "host/pytorch.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "host/dlpack.h"

namespace py = pybind11;

namespace pytorch {
namespace {

// Objects of Python that are looked up once. They are never freed, as the interpreter may end before
// static objects do.
struct Names {
  py::object tensor, float16, bfloat16, float32;
  py::object new_empty_strided, dtype_keyword;
  py::object empty_cpu, empty_cuda;  // None where PyTorch has none
  py::object are_algorithms_deterministic;
  py::object current_stream, current_device, set_device;  // None without CUDA
  // DLPack's function, or null where PyTorch has none: 2.8 lacks it, 2.11 has it.
  int (*from_python)(void*, dlpack::Tensor*) = nullptr;
};

Names look_up() {
  const py::module_ torch = py::module_::import("torch");
  const py::object internal = torch.attr("_C");
  Names names;
  names.tensor = torch.attr("Tensor");
  names.float16 = torch.attr("float16");
  names.bfloat16 = torch.attr("bfloat16");
  names.float32 = torch.attr("float32");
  names.new_empty_strided = py::str("new_empty_strided");
  names.dtype_keyword = py::make_tuple("dtype");
  const py::object guards = py::getattr(internal.attr("_dynamo"), "guards", py::none());
  names.empty_cpu = py::getattr(guards, "_empty_strided_cpu", py::none());
  names.empty_cuda = py::getattr(guards, "_empty_strided_cuda", py::none());
  names.are_algorithms_deterministic = internal.attr("_get_deterministic_algorithms");
  names.current_stream = py::getattr(internal, "_cuda_getCurrentRawStream", py::none());
  names.current_device = py::getattr(internal, "_cuda_getDevice", py::none());
  names.set_device = py::getattr(internal, "_cuda_setDevice", py::none());
  const py::object capsule = py::getattr(names.tensor, "__dlpack_c_exchange_api__", py::none());
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::table_name)) {
    const auto* table = static_cast<dlpack::ExchangeTable*>(
        PyCapsule_GetPointer(capsule.ptr(), dlpack::table_name));
    while (table && table->version.major != dlpack::major_version) table = table->previous;
    if (table) names.from_python = table->from_python;
  }
  return names;
}

const Names& names() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Names> storage;
  return storage.call_once_and_store_result(look_up).get_stored();
}

bool uses_attributes = false;

Type type_of(const dlpack::DataType& type) {
  if (type.lanes != 1) return Type::other;
  if (type.code == dlpack::bfloat_code && type.bits == 16) return Type::bfloat16;
  if (type.code == dlpack::float_code && type.bits == 16) return Type::float16;
  if (type.code == dlpack::float_code && type.bits == 32) return Type::float32;
  return Type::other;
}

Type type_of(const py::object& dtype) {
  if (dtype.is(names().float16)) return Type::float16;
  if (dtype.is(names().bfloat16)) return Type::bfloat16;
  return dtype.is(names().float32) ? Type::float32 : Type::other;
}

py::handle dtype_of(Type type) {
  switch (type) {
    case Type::float16: return names().float16;
    case Type::bfloat16: return names().bfloat16;
    case Type::float32: return names().float32;
    default: throw std::invalid_argument("kernels take images of float16 and bfloat16");
  }
}

void describe_by_attributes(Tensor& to) {
  const py::object& object = to.object;
  const py::tuple sizes = object.attr("shape"), strides = object.attr("stride")();
  to.address = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  to.dimensions = int(sizes.size());
  to.type = type_of(py::object(object.attr("dtype")));
  to.device = object.attr("get_device")().cast<int>();
  if (to.dimensions > 4) return;
  for (size_t i = 0; i < sizes.size(); ++i) {
    to.sizes[i] = sizes[i].cast<int64_t>();
    to.strides[i] = strides[i].cast<int64_t>();
  }
}

py::object tuple_of(const int64_t* values, size_t count) {
  py::tuple tuple(count);
  for (size_t i = 0; i < count; ++i)
    PyTuple_SET_ITEM(tuple.ptr(), py::ssize_t(i), PyLong_FromLongLong(values[i]));
  return tuple;
}

py::object checked(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// Tells whether PyTorch fills memory that its methods allocate, as it does where algorithms have to be
// deterministic.
bool fills_memory() {
  return checked(PyObject_CallNoArgs(names().are_algorithms_deterministic.ptr())).ptr() == Py_True;
}

// Makes a tensor by the function that code of torch.compile calls: it goes straight to the allocator,
// and takes less than half the time of a method.
Tensor make(const Tensor& like, Type type, const int64_t* sizes, const int64_t* strides,
            size_t dimensions) {
  const py::object shape = tuple_of(sizes, dimensions), steps = tuple_of(strides, dimensions);
  const py::handle dtype = dtype_of(type);
  const py::object& function = like.device < 0 ? names().empty_cpu : names().empty_cuda;
  if (uses_attributes || function.is_none() || fills_memory()) {
    PyObject* const arguments[] = {like.object.ptr(), shape.ptr(), steps.ptr(), dtype.ptr()};
    return describe(checked(PyObject_VectorcallMethod(names().new_empty_strided.ptr(), arguments, 3,
                                                      names().dtype_keyword.ptr())));
  }
  const CurrentDevice current(like.device);
  PyObject* const arguments[] = {shape.ptr(), steps.ptr(), dtype.ptr()};
  return describe(checked(PyObject_Vectorcall(function.ptr(), arguments, 3, nullptr)));
}

// The function that `watch` was given, or null.
PyObject* watcher = nullptr;

void* give(const Tensor& tensor, bool written) {
  if (tensor.type != Type::float32 && uintptr_t(tensor.address) % 2 != 0)
    throw std::invalid_argument("a tensor of 16-bit elements begins at an odd address");
  if (const py::handle function{watcher}) function(tensor.object, written);
  return tensor.address;
}

}  // namespace

bool is_tensor(py::handle object) {
  return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(names().tensor.ptr())) !=
         0;
}

Tensor describe(py::handle tensor) {
  Tensor to;
  to.object = py::reinterpret_borrow<py::object>(tensor);
  if (names().from_python == nullptr || uses_attributes) {
    describe_by_attributes(to);
    return to;
  }
  dlpack::Tensor from;
  if (names().from_python(tensor.ptr(), &from) != 0) throw py::error_already_set();
  to.address = static_cast<char*>(from.data) + from.byte_offset;
  to.dimensions = from.dimensions;
  to.type = type_of(from.type);
  to.device = from.device.type == dlpack::cuda ? from.device.index : -1;
  if (to.dimensions > 4) return to;
  std::copy_n(from.sizes, to.dimensions, to.sizes.begin());
  std::copy_n(from.strides, to.dimensions, to.strides.begin());
  return to;
}

Tensor empty(const Tensor& like, const Extents& sizes, const Extents& strides) {
  return make(like, like.type, sizes.data(), strides.data(), sizes.size());
}

Tensor empty_floats(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Extents strides{};
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes.begin()[i]) strides[i] = step;
  return make(like, Type::float32, sizes.begin(), strides.data(), sizes.size());
}

Tensor call(const Tensor& tensor, const char* method) {
  return describe(tensor.object.attr(method)());
}
Tensor call(const Tensor& tensor, const char* method, const Tensor& argument) {
  return describe(tensor.object.attr(method)(argument.object));
}

void* to_read(const Tensor& tensor) { return give(tensor, false); }
void* to_write(const Tensor& tensor) { return give(tensor, true); }

void watch(py::object function) {
  Py_XDECREF(std::exchange(watcher, function.is_none() ? nullptr : function.release().ptr()));
}

void use_attributes(bool use) { uses_attributes = use; }

cudaStream_t current_stream(int device) {
  if (device < 0) return nullptr;
  return reinterpret_cast<cudaStream_t>(names().current_stream(device).cast<uintptr_t>());
}

CurrentDevice::CurrentDevice(int device) {
  if (device < 0) return;
  const int current = names().current_device().cast<int>();
  if (current == device) return;
  names().set_device(device);
  previous_ = current;
}

CurrentDevice::~CurrentDevice() {
  if (previous_ < 0) return;
  try {
    names().set_device(previous_);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("return to a CUDA device");
  }
}

}  // namespace pytorch
