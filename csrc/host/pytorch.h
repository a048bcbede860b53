// PyTorch as the extension sees it: tensors, streams and devices, by way of Python and DLPack. PyTorch's
// headers are not needed, so one build serves every version of it.
#pragma once
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>

namespace pytorch {

// ---- tensors -------------------------------------------------------------------------------------

enum class Type { float16, bfloat16, float32, other };

// Sizes or strides, in elements, of up to four dimensions; the others are 0.
using Extents = std::array<int64_t, 4>;

// A tensor and what passes need to know of it. One of more than four dimensions has only `dimensions`.
struct Tensor {
  pybind11::object object;
  void* address = nullptr;
  int dimensions = 0;
  Extents sizes{}, strides{};
  Type type = Type::other;
  int device = -1;  // of CUDA, or -1 for the CPU
};

bool is_tensor(pybind11::handle);
Tensor describe(pybind11::handle tensor);

// Makes an uninitialised tensor on the device of another one, of its type.
Tensor empty(const Tensor& like, const Extents& sizes, const Extents& strides);

// Makes an uninitialised contiguous tensor of float32 on the device of another one.
Tensor empty_floats(const Tensor& like, std::initializer_list<int64_t> sizes);

// Calls a method of a tensor that takes other tensors or nothing.
Tensor call(const Tensor&, const char* method);
Tensor call(const Tensor&, const char* method, const Tensor& argument);

// Gives the address of a tensor to a kernel that reads it, or writes it as well. One of 16-bit elements
// at an odd address is refused with std::invalid_argument.
void* to_read(const Tensor&);
void* to_write(const Tensor&);

// Has a function of Python called with each tensor whose address a kernel is given, and whether it is
// written. None ends that. This tells an emulated GPU which memory is the kernel's.
void watch(pybind11::object function);

// Has tensors read and made through the attributes and methods of Python alone, as in versions of PyTorch
// that lack the functions for it.
void use_attributes(bool);

// ---- streams and devices -------------------------------------------------------------------------

// PyTorch's current stream of a device.
cudaStream_t current_stream(int device);

// Makes a device PyTorch's current one while it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = -1;  // the device to return to, or -1
};

}  // namespace pytorch

// ---- arguments and results of functions for Python -------------------------------------------------

namespace pybind11::detail {

template <>
struct type_caster<pytorch::Tensor> {
  PYBIND11_TYPE_CASTER(pytorch::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    if (!pytorch::is_tensor(source)) return false;
    value = pytorch::describe(source);
    return true;
  }

  static handle cast(pytorch::Tensor tensor, return_value_policy, handle) {
    return tensor.object.release();
  }
};

}  // namespace pybind11::detail
