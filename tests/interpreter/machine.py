"""Small kernels for the tests of the interpreter: buffers, launches, and instructions by lanes."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from convmixer_kernels import emulated_gpu

Value = int | float

_FORMATS = {
    **{"u8": "B", "s8": "b", "b16": "H", "u16": "H", "s16": "h", "b32": "I", "u32": "I"},
    **{"s32": "i", "b64": "Q", "u64": "Q", "s64": "q", "f32": "f"},
}
# Declares the shared memory of a launch, for `kernel`.
SHARED = ".extern .shared .align 128 .b8 memory[];"
HEADER = ".version 8.7\n.target sm_90\n.address_size 64\n"
# Every test kernel begins with this: %lane is the thread's number in its block.
_PROLOGUE = """
    .reg .b32 %lane, %zero;
    .reg .b64 %offset64;
    mov.u32 %lane, %tid.x;
    mov.u32 %zero, 0;
"""


def interpreter() -> Any:
    """The Python module of `csrc/interpreter`."""
    return emulated_gpu.interpreter()


class Buffer:
    """Global memory with values of one type of PTX."""

    def __init__(self, type: str, values: Sequence[Value]) -> None:
        self._format = f"<{len(values)}{_FORMATS[type]}"
        size = max(struct.calcsize(self._format), 1)
        # A multiple of 32, so that tests of sectors know where they begin.
        self._memory = (ctypes.c_char * (size + 32))()
        self.address = (ctypes.addressof(self._memory) + 31) // 32 * 32
        self.bytes = size
        ctypes.memmove(self.address, struct.pack(self._format, *values), size)

    def values(self) -> list[Value]:
        return list(struct.unpack(self._format, ctypes.string_at(self.address, self.bytes)))

    def argument(self) -> bytes:
        return struct.pack("<Q", self.address)


def kernel(
    body: str, parameters: Sequence[str] = (), directives: str = "", shared: str = ""
) -> str:
    """A module with one kernel `test`: pointers of these names in registers, %lane, and `body`."""
    declared = ",\n".join(f".param .u64 p_{name}" for name in parameters)
    loaded = "".join(
        f"    .reg .b64 %{name};\n    ld.param.u64 %{name}, [p_{name}];\n" for name in parameters
    )
    return f"{HEADER}{shared}\n.visible .entry test({declared})\n{directives}\n" + (
        f"{{\n{_PROLOGUE}{loaded}{body}\n    ret;\n}}\n"
    )


def line_of(text: str, part: str) -> int:
    """The number of the one line of a text that contains `part`."""
    (number,) = [n for n, line in enumerate(text.split("\n"), start=1) if part in line]
    return number


def launch(
    text: str,
    *buffers: Buffer,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    permit: bool = True,
) -> list[Any]:
    """Run the kernel `test` of a module on buffers and return the findings."""
    machine = interpreter()
    machine.load("test.ptx", text)
    machine.take_findings()
    if permit:
        machine.forbid_all()
        for buffer in buffers:
            machine.permit(buffer.address, buffer.bytes)
    arguments = [buffer.argument() for buffer in buffers]
    machine.launch("test", (blocks, 1, 1), (threads, 1, 1), shared, arguments)
    return list(machine.take_findings())


def kinds(findings: Sequence[Any]) -> set[str]:
    return {finding.kind for finding in findings}


def compute(instructions: str, result: str, **operands: tuple[str, Sequence[Value]]) -> list[Value]:
    """Execute instructions on registers, a lane for each value of the operands.

    An operand `a=("s32", [1, 2])` is the register %a. What the instructions leave in %d, of type
    `result` ("pred" gives 0 and 1), is returned for each lane. There is a predicate %p and %q.
    """
    count = max((len(values) for _, values in operands.values()), default=1)
    buffers = [Buffer(type, values) for type, values in operands.values()]
    lines = [".reg .pred %p, %q;"]
    for name, (type, _) in operands.items():
        size = _bits(type) // 8
        lines += [
            f".reg .b{_bits(type)} %{name};",
            f"mad.wide.u32 %offset64, %lane, {size}, %p_{name};",
            f"ld.global.b{_bits(type)} %{name}, [%offset64];",
        ]
    stored = "u32" if result == "pred" else result
    lines += [
        f".reg .{'pred' if result == 'pred' else f'b{_bits(result)}'} %d;",
        instructions,
        f"mad.wide.u32 %offset64, %lane, {_bits(stored) // 8}, %p_out;",
    ]
    if result == "pred":
        lines += [
            ".reg .b32 %flag;",
            "selp.u32 %flag, 1, 0, %d;",
            "st.global.u32 [%offset64], %flag;",
        ]
    else:
        lines += [f"st.global.b{_bits(result)} [%offset64], %d;"]
    out = Buffer(stored, [0] * count)
    names = [f"p_{name}" for name in (*operands, "out")]
    found = launch(kernel("\n".join(lines), names), *buffers, out, threads=count)
    assert not found, "\n".join(map(str, found))
    return out.values()


def bits_of(value: float) -> int:
    """The bits of a value as a float of 32 bits."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _bits(type: str) -> int:
    return int(type.lstrip("bufs"))
