// The part of DLPack, https://github.com/dmlc/dlpack, by which a C function reads a tensor of Python: the
// table that torch.Tensor offers as __dlpack_c_exchange_api__. Its layout is that of major version 1.
#pragma once
#include <cstdint>

namespace dlpack {

constexpr uint32_t major_version = 1;
constexpr const char* table_name = "dlpack_exchange_api";  // of the capsule

struct Version {
  uint32_t major, minor;
};

enum : uint8_t { float_code = 2, bfloat_code = 4 };
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

enum : int32_t { cpu = 1, cuda = 2 };
struct Device {
  int32_t type, index;
};

struct Tensor {
  void* data;
  Device device;
  int32_t dimensions;
  DataType type;
  int64_t* sizes;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeTable {
  Version version;
  ExchangeTable* previous;  // an older version of the table, or null
  void* allocate;
  void* from_python_owning;
  void* to_python;
  // Describes a tensor, which stays its owner's. Gives 0, or -1 with a Python exception.
  int (*from_python)(void* object, Tensor* to);
  void* current_stream;
};

}  // namespace dlpack
