// PTX ISA, "Data Movement and Conversion Instructions": ld, st.
#include <bit>
#include <type_traits>

#include "block.h"
#include "lanes.h"
#include "memory_access.h"
#include "opcodes.h"
#include "text.h"

namespace ptx {
namespace {

// The bytes that each lane reads or writes, up to 16.
struct alignas(16) LaneData {
  uint8_t bytes[16];
};
using Data = std::array<LaneData, lanes_per_warp>;

// ---- between registers and data -----------------------------------------------------------------

// Element number e of the vector goes to destination e, extended to the register as its type says.
template <class Element, class Register>
void to_registers(Warp& warp, const Instruction& in, LaneMask lanes, const Data& data) {
  for (unsigned e = 0; e < in.elements; ++e) {
    Row<Register> values;
    for (unsigned l = 0; l < lanes_per_warp; ++l) {
      Element element;
      std::memcpy(&element, data[l].bytes + e * sizeof(Element), sizeof(Element));
      values[l] = static_cast<Register>(element);
    }
    warp.write(in.destinations[e], values, lanes);
  }
}

template <class Element, class Register>
void from_registers(const Warp& warp, const Instruction& in, Data& data) {
  for (unsigned e = 0; e < in.elements; ++e) {
    const Register* const values = warp.row<Register>(in.sources[1 + e]);
    for (unsigned l = 0; l < lanes_per_warp; ++l) {
      const Element element = static_cast<Element>(values[l]);
      std::memcpy(data[l].bytes + e * sizeof(Element), &element, sizeof(Element));
    }
  }
}

// ---- between data and memory --------------------------------------------------------------------

// The bytes of a lane are a constant of the loop, so that copying them is one move.
template <class Use>
void with_bytes(uint32_t bytes, Use use) {
  switch (bytes) {
    case 1: return use(std::integral_constant<uint32_t, 1>());
    case 2: return use(std::integral_constant<uint32_t, 2>());
    case 4: return use(std::integral_constant<uint32_t, 4>());
    case 8: return use(std::integral_constant<uint32_t, 8>());
    default: return use(std::integral_constant<uint32_t, 16>());
  }
}

// Calls `use` for the lanes of a mask.
template <class Use>
void for_lanes(LaneMask lanes, Use use) {
  for (; lanes != 0; lanes &= lanes - 1) use(static_cast<unsigned>(std::countr_zero(lanes)));
}

template <class Use>
void for_lanes_with_bytes(LaneMask lanes, uint32_t bytes, Use use) {
  with_bytes(bytes,
             [&](auto constant) { for_lanes(lanes, [&](unsigned l) { use(l, constant); }); });
}

uint8_t* local_place(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                     uint32_t bytes) {
  const uint32_t size = warp.block->launch.program.local_bytes;
  if (address % bytes != 0 || address + bytes > size) {
    warp.report(in, lane, kind::local_out_of_bounds,
                std::to_string(bytes) + " bytes at " + std::to_string(address) + " of " +
                    std::to_string(size));
    return nullptr;
  }
  return &warp.local[size_t{lane} * size + address];
}

const uint8_t* parameter_place(const Warp& warp, const Instruction& in, uint64_t address,
                               uint32_t bytes) {
  const std::vector<std::byte>& parameters = warp.block->launch.parameters;
  if (address % bytes != 0 || address + bytes > parameters.size())
    warp.stop(in, "it reads beyond the parameters or misaligned, at " + std::to_string(address));
  return reinterpret_cast<const uint8_t*>(&parameters[address]);
}

// The space of generic addresses, which become addresses of that space.
Space resolve(const Warp& warp, const Instruction& in, LaneMask lanes, Row<uint64_t>& addresses) {
  if (in.space != Space::generic) return in.space;
  const auto space_of = [](uint64_t address) {
    return address >= shared_window  ? Space::shared
           : address >= local_window ? Space::local
                                     : Space::global;
  };
  const Space space = space_of(addresses[static_cast<unsigned>(std::countr_zero(lanes))]);
  for_lanes(lanes, [&](unsigned l) {
    if (space_of(addresses[l]) != space) warp.stop(in, "its lanes address different spaces");
    if (space == Space::shared) addresses[l] -= shared_window;
    if (space == Space::local) addresses[l] -= local_window;
  });
  return space;
}

// Lanes that may not read receive ones in all bits, which is NaN.
void fetch(Warp& warp, const Instruction& in, LaneMask lanes, Data& data) {
  Row<uint64_t> addresses = addresses_of(warp, in.sources[0], in.wide_address, in.offset);
  Counters& counters = warp.block->launch.counters;
  const uint32_t total = uint32_t{in.elements} * in.element_bytes;
  const auto each = [&](auto place) {
    for_lanes_with_bytes(lanes, total, [&](unsigned l, auto bytes) {
      if (const uint8_t* const from = place(l)) std::memcpy(data[l].bytes, from, bytes);
      else std::memset(data[l].bytes, 0xff, bytes);
    });
  };
  const auto lane_count = static_cast<unsigned>(std::popcount(lanes));
  switch (resolve(warp, in, lanes, addresses)) {
    case Space::shared: {
      const Wavefronts wavefronts = count_wavefronts(addresses, lanes, total);
      counters.shared_load_wavefronts += wavefronts.needed;
      counters.shared_load_wavefronts_ideal += wavefronts.ideal;
      each([&](unsigned l) { return readable_shared(warp, in, l, addresses[l], total, false); });
      break;
    }
    case Space::local:
      counters.local_bytes_read += total * lane_count;
      each([&](unsigned l) { return local_place(warp, in, l, addresses[l], total); });
      break;
    case Space::param:
      each([&](unsigned l) { return parameter_place(warp, in, addresses[l], total); });
      break;
    default:
      counters.global_bytes_read += total * count_pieces(addresses, lanes, total);
      counters.global_sectors_read += count_pieces(addresses, lanes, sector_bytes);
      each([&](unsigned l) { return readable_global(warp, in, l, addresses[l], total); });
  }
}

void put(Warp& warp, const Instruction& in, LaneMask lanes, const Data& data) {
  Row<uint64_t> addresses = addresses_of(warp, in.sources[0], in.wide_address, in.offset);
  Counters& counters = warp.block->launch.counters;
  const uint32_t total = uint32_t{in.elements} * in.element_bytes;
  const auto each = [&](auto place) {
    for_lanes_with_bytes(lanes, total, [&](unsigned l, auto bytes) {
      if (uint8_t* const to = place(l)) std::memcpy(to, data[l].bytes, bytes);
    });
  };
  const auto lane_count = static_cast<unsigned>(std::popcount(lanes));
  switch (resolve(warp, in, lanes, addresses)) {
    case Space::shared: {
      const Wavefronts wavefronts = count_wavefronts(addresses, lanes, total);
      counters.shared_store_wavefronts += wavefronts.needed;
      counters.shared_store_wavefronts_ideal += wavefronts.ideal;
      for_lanes(lanes, [&](unsigned l) {
        write_shared(warp, in, l, addresses[l], data[l].bytes, total, false);
      });
      break;
    }
    case Space::local:
      counters.local_bytes_written += total * lane_count;
      each([&](unsigned l) { return local_place(warp, in, l, addresses[l], total); });
      break;
    default:
      counters.global_bytes_written += total * lane_count;
      counters.global_sectors_written += count_pieces(addresses, lanes, sector_bytes);
      each([&](unsigned l) { return writable_global(warp, in, l, addresses[l], total); });
  }
}

// ---- instructions -------------------------------------------------------------------------------

template <class Element, class Register>
void load(Warp& warp, const Instruction& in, LaneMask lanes) {
  Data data;
  fetch(warp, in, lanes, data);
  to_registers<Element, Register>(warp, in, lanes, data);
}

template <class Element, class Register>
void store(Warp& warp, const Instruction& in, LaneMask lanes) {
  Data data;
  from_registers<Element, Register>(warp, in, data);
  put(warp, in, lanes, data);
}

// The function for an element of memory and a register, of which the latter is as wide or wider.
template <template <class, class> class Function, class Element>
Execute for_register(int register_bytes) {
  switch (register_bytes) {
    case 2:
      if constexpr (sizeof(Element) <= 2) return Function<Element, uint16_t>::execute;
      break;
    case 4:
      if constexpr (sizeof(Element) <= 4) return Function<Element, uint32_t>::execute;
      break;
    case 8: return Function<Element, uint64_t>::execute;
    default: break;
  }
  return nullptr;
}

template <template <class, class> class Function>
Execute for_types(Type type, int register_bytes) {
  switch (type) {
    case Type::s8: return for_register<Function, int8_t>(register_bytes);
    case Type::s16: return for_register<Function, int16_t>(register_bytes);
    case Type::s32: return for_register<Function, int32_t>(register_bytes);
    default: break;
  }
  switch (bits_of(type)) {
    case 8: return for_register<Function, uint8_t>(register_bytes);
    case 16: return for_register<Function, uint16_t>(register_bytes);
    case 32: return for_register<Function, uint32_t>(register_bytes);
    case 64: return for_register<Function, uint64_t>(register_bytes);
    default: return nullptr;
  }
}

template <class Element, class Register>
struct Load {
  static constexpr Execute execute = load<Element, Register>;
};
template <class Element, class Register>
struct Store {
  static constexpr Execute execute = store<Element, Register>;
};

Space take_space(Statement& s) {
  if (s.take("global")) return Space::global;
  if (s.take("shared") || s.take("shared::cta")) return Space::shared;
  if (s.take("local")) return Space::local;
  if (s.take("param")) return Space::param;
  return Space::generic;
}

// Caching changes no value.
void take_cache_hints(Statement& s) {
  for (const char* hint : {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_first",
                           "L1::evict_last", "L1::no_allocate", "L2::64B", "L2::128B", "L2::256B"})
    s.take(hint);
}

// Takes the modifiers of ld and st, and returns the type.
Type take_access(Statement& s) {
  Instruction& in = s.instruction;
  in.space = take_space(s);
  s.take("weak");
  take_cache_hints(s);
  in.elements = s.take("v4") ? 4 : s.take("v2") ? 2 : 1;
  const Type type = s.take_type();
  in.element_bytes = static_cast<uint8_t>(bits_of(type) / 8);
  if (in.element_bytes == 0 || in.elements * in.element_bytes > 16)
    s.refuse("a vector of this size is not known");
  return type;
}

// One width of registers for the whole vector.
int width_of_registers(Statement& s, int count) {
  Instruction& in = s.instruction;
  if (count != in.elements) s.refuse("the number of its registers");
  for (int i = 1; i < count; ++i)
    if (in.register_bytes[i] != in.register_bytes[0]) s.refuse("registers of different widths");
  return in.register_bytes[0];
}

// "Data Movement and Conversion Instructions: ld", "... ld.global.nc"
void decode_ld(Statement& s) {
  Instruction& in = s.instruction;
  in.read_only_cache = s.take("nc");
  const Type type = take_access(s);
  const int width = width_of_registers(s, s.write_list(0, 4, type));
  s.comma();
  in.wide_address = s.address(0, in.offset) == 64;
  in.execute = for_types<Load>(type, width);
  if (!in.execute) s.refuse("its type is not known");
}

// "Data Movement and Conversion Instructions: st"
void decode_st(Statement& s) {
  Instruction& in = s.instruction;
  const Type type = take_access(s);
  if (in.space == Space::param) s.refuse("kernels cannot write parameters");
  in.wide_address = s.address(0, in.offset) == 64;
  s.comma();
  const int width = width_of_registers(s, s.read_list(1, 4, type));
  in.execute = for_types<Store>(type, width);
  if (!in.execute) s.refuse("its type is not known");
}

constexpr OpcodeDecoder opcodes[] = {{"ld", decode_ld}, {"st", decode_st}};

}  // namespace

std::span<const OpcodeDecoder> memory_opcodes() { return opcodes; }

}  // namespace ptx
