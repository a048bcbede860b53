"""Loads and stores: values, findings and counters."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from .machine import HEADER, SHARED, Buffer, interpreter, kernel, kinds, launch, line_of


def only(findings: list[Any]) -> Any:
    (finding,) = findings
    return finding


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "register", "stored", "expected"),
    [
        ("u8", "b16", "b16", 0xFE),
        ("s8", "b16", "s16", -2),
        ("s8", "b32", "s32", -2),
        ("u16", "b32", "u32", 0xFFFE),
        ("s16", "b32", "s32", -2),
        ("s32", "b64", "s64", -2),
        ("b32", "b64", "u64", 2**32 - 2),
        ("b64", "b64", "s64", -2),
    ],
)
def test_loads_extend_to_their_registers(
    load: str, register: str, stored: str, expected: int
) -> None:
    body = f"""
    .reg .{register} %x;
    ld.global.{load} %x, [%in];
    st.global.{stored} [%out], %x;
    """
    source, out = Buffer("s64", [-2]), Buffer(stored, [0])
    assert launch(kernel(body, ["in", "out"]), source, out, threads=1) == []
    assert out.values() == [expected]


def test_vectors_through_shared_memory() -> None:
    body = """
    .reg .b32 %w<4>, %at;
    .reg .b16 %h<4>;
    mov.u32 %at, memory;
    mad.lo.u32 %at, %lane, 16, %at;
    mad.wide.u32 %offset64, %lane, 16, %in;
    ld.global.nc.v4.b32 {%w0, %w1, %w2, %w3}, [%offset64];
    st.shared.v4.u32 [%at], {%w0, %w1, %w2, %w3};
    ld.shared.v4.b16 {%h0, %h1, %h2, %h3}, [%at+8];
    mad.wide.u32 %offset64, %lane, 8, %out;
    st.global.v2.b16 [%offset64], {%h0, %h1};
    st.global.v2.b16 [%offset64+4], {%h2, %h3};
    """
    source = Buffer("u16", range(256))
    out = Buffer("u16", [0] * 128)
    assert launch(kernel(body, ["in", "out"], shared=SHARED), source, out, shared=512) == []
    assert out.values() == [8 * lane + 4 + i for lane in range(32) for i in range(4)]


def test_arrays_in_shared_and_local_memory_and_generic_addresses() -> None:
    body = """
    .shared .align 8 .b8 inner[64];
    .local .align 4 .b8 own[8];
    .reg .b64 %generic, %g;
    .reg .b32 %x, %at;
    mov.u64 %generic, inner;
    cvta.shared.u64 %generic, %generic;
    mad.wide.u32 %generic, %lane, 4, %generic;
    st.b32 [%generic], %lane;
    mov.u32 %at, outer;
    st.shared.b32 [%at+16], %lane;
    mov.u64 %g, own;
    cvta.local.u64 %g, %g;
    st.u32 [%g+4], %lane;
    st.local.u32 [own], 100;
    ld.local.u32 %at, [own+4];
    ld.u32 %x, [%generic];
    add.u32 %x, %x, %at;
    ld.u32 %at, [%g];
    add.u32 %x, %x, %at;
    mad.wide.u32 %offset64, %lane, 4, %out;
    cvta.to.global.u64 %offset64, %offset64;
    st.global.u32 [%offset64], %x;
    """
    machine = interpreter()
    out = Buffer("u32", [0] * 16)
    text = kernel(body, ["out"], shared=".shared .align 16 .b8 outer[24];")
    machine.take_counters()
    found = launch(text, out, threads=16)
    assert kinds(found) == {
        "race: two threads write shared memory"
    }  # of different values, to outer
    assert out.values() == [100 + 2 * lane for lane in range(16)]
    counters = machine.take_counters()
    assert (counters["local_bytes_read"], counters["local_bytes_written"]) == (128, 128)
    (summary,) = [k for k in machine.kernels() if k.name == "test"]
    assert (summary.static_shared_bytes, summary.local_bytes) == (24 + 64, 8)
    outside = text.replace("ld.local.u32 %at, [own+4]", "ld.local.u32 %at, [own+8]")
    assert "local access out of bounds or misaligned" in kinds(launch(outside, out, threads=16))


def test_parameters_through_registers() -> None:
    body = """
    .reg .b64 %at;
    .reg .b32 %x;
    mov.b64 %at, p_out;
    ld.param.u64 %at, [%at];
    mov.b32 %x, 5;
    st.global.b32 [%at], %x;
    """
    out = Buffer("u32", [0])
    assert launch(kernel(body, ["out"]), out, threads=1) == []
    assert out.values() == [5]
    beyond = kernel(body, ["out"]).replace("[%at];\n    mov", "[%at+8];\n    mov")
    with pytest.raises(interpreter().Refusal, match="beyond the parameters"):
        launch(beyond, out, threads=1)


def test_parameters_lie_at_multiples_of_their_alignment() -> None:
    text = f"""{HEADER}.visible .entry test(
    .param .u8 first, .param .u64 out, .param .u16 third, .param .align 8 .b8 pair[8])
    {{
    .reg .b64 %out;
    .reg .b32 %x, %y;
    ld.param.u64 %out, [out];
    ld.param.v2.u32 {{%x, %y}}, [pair];
    st.global.v2.u32 [%out], {{%x, %y}};
    ret;
    }}"""
    out, machine = Buffer("u32", [0, 0]), interpreter()
    machine.load("test.ptx", text)
    machine.permit(out.address, out.bytes)
    arguments = [bytes(1), out.argument(), bytes(2), struct.pack("<2I", 3, 4)]
    machine.launch("test", (1, 1, 1), (1, 1, 1), 0, arguments)
    assert out.values() == [3, 4]


def test_what_a_block_leaves_the_next_does_not_find() -> None:
    body = """
    .local .align 4 .b8 own[4];
    .reg .b32 %block, %x, %y, %z;
    .reg .pred %p;
    mov.u32 %block, %ctaid.x;
    setp.eq.u32 %p, %block, 0;
    @%p mov.u32 %x, 5;
    @%p st.local.u32 [own], 6;
    @%p st.shared.u32 [memory], 7;
    bar.sync 0;
    ld.local.u32 %y, [own];
    ld.shared.u32 %z, [memory];
    mad.wide.u32 %offset64, %block, 16, %out;
    st.global.v4.u32 [%offset64], {%x, %y, %z, %block};
    """
    out = Buffer("u32", [0] * 8)
    text = kernel(body, ["out"], shared=SHARED)
    found = only(launch(text, out, threads=1, blocks=2, shared=4))
    assert (found.kind, found.count) == ("read of uninitialised shared memory", 1)
    assert "block (1, 0, 0)" in found.detail
    register, *memory = out.values()[4:7]
    assert out.values()[:4] == [5, 6, 7, 0]
    assert register != 5 and memory == [2**32 - 1] * 2


def test_where_arrays_lie() -> None:
    """Arrays are aligned as they ask for, and dynamic shared memory lies behind static."""
    body = """
    .local .align 1 .b8 odd[3];
    .local .align 8 .b8 even[8];
    .shared .align 1 .b8 three[3];
    .shared .align 4 .b8 inner[12];
    .reg .b32 %x, %y;
    .reg .b64 %wide, %generic;
    mov.u64 %wide, 1;
    st.local.u64 [even], %wide;
    st.shared.u32 [inner+8], 20;
    mov.u64 %generic, memory;
    cvta.shared.u64 %generic, %generic;
    cvta.to.shared.u64 %generic, %generic;
    st.shared.u32 [%generic+8], 30;
    ld.shared.u32 %x, [inner+8];
    ld.shared.u32 %y, [memory+8];
    st.global.v2.u32 [%out], {%x, %y};
    """
    out = Buffer("u32", [0, 0])
    text = kernel(body, ["out"], shared=SHARED)
    assert launch(text, out, threads=1, shared=12) == []
    assert out.values() == [20, 30]
    (found,) = launch(text.replace("[even]", "[even+4]"), out, threads=1, shared=12)
    assert found.kind == "local access out of bounds or misaligned"


def test_lanes_that_address_different_spaces() -> None:
    body = """
    .reg .b64 %generic;
    .reg .pred %p;
    mov.u64 %generic, memory;
    cvta.shared.u64 %generic, %generic;
    setp.eq.u32 %p, %lane, 0;
    selp.b64 %generic, %generic, %out, %p;
    st.u32 [%generic], %lane;
    """
    text = kernel(body, ["out"], shared=SHARED)
    with pytest.raises(interpreter().Refusal, match="its lanes address different spaces"):
        launch(text, Buffer("u32", [0]), threads=2, shared=4)


# ---- global memory -------------------------------------------------------------------------------


def access(instruction: str, scale: int = 4) -> str:
    return kernel(
        f"""
    .reg .b32 %x;
    mov.u32 %x, 1;
    mad.wide.u32 %offset64, %lane, {scale}, %p;
    {instruction}
    """,
        ["p"],
    )


def test_global_accesses_out_of_bounds() -> None:
    text = access("ld.global.b32 %x, [%offset64];")
    assert launch(text, Buffer("u32", [0] * 32)) == []
    found = only(launch(text, Buffer("u32", [0] * 30)))
    assert (found.kind, found.count, found.kernel) == ("global read out of bounds", 2, "test")
    assert (found.file, found.line) == ("test.ptx", line_of(text, "ld.global"))
    assert found.instruction == "ld.global.b32"
    assert "lane 30" in found.detail
    assert "4 bytes" in found.detail
    assert str(found).startswith(
        f"global read out of bounds: ld.global.b32 at test.ptx:{found.line}"
    )
    # The last lane has its first two bytes only.
    assert only(launch(text, Buffer("u16", [0] * 63))).count == 1
    found = only(launch(text.replace("[%offset64]", "[%offset64+-4]"), Buffer("u32", [0] * 31)))
    assert (found.kind, found.count) == ("global read out of bounds", 1)
    text = access("st.global.b32 [%offset64], %x;")
    memory = Buffer("u32", [0] * 32)
    machine = interpreter()
    machine.forbid_all()
    machine.permit(memory.address, 124)
    assert only(launch(text, memory, permit=False)).kind == "global write out of bounds"
    assert memory.values() == [1] * 31 + [0]  # what is refused does not happen


def test_forbidden_reads_give_ones_and_each_line_its_finding() -> None:
    body = """
    .reg .b32 %x, %y;
    ld.global.b32 %x, [%in+4];
    ld.global.b32 %y, [%in+8];
    st.global.v2.b32 [%out], {%x, %y};
    """
    source, out = Buffer("u32", [0]), Buffer("u32", [0, 0])
    found = launch(kernel(body, ["in", "out"]), source, out, threads=1)
    assert [each.kind for each in found] == ["global read out of bounds"] * 2
    assert out.values() == [2**32 - 1] * 2


def test_memory_that_may_only_be_read_or_not_at_all() -> None:
    machine = interpreter()
    text = access("st.global.b32 [%offset64], %x;")
    memory = Buffer("u32", [0] * 32)
    machine.forbid_all()
    machine.permit(memory.address, memory.bytes, writable=False)
    assert kinds(launch(text, memory, permit=False)) == {"write to read-only memory"}
    assert kinds(launch(access("ld.global.b32 %x, [%offset64];"), memory, permit=False)) == set()
    machine.forbid(memory.address)
    assert kinds(launch(text, memory, permit=False)) == {"global write out of bounds"}
    assert memory.values() == [0] * 32


def test_misaligned_global_access() -> None:
    text = access("ld.global.b32 %x, [%offset64+2];")
    assert kinds(launch(text, Buffer("u32", [0] * 40))) == {"misaligned global access"}
    text = access(".reg .b32 %y; ld.global.v2.b32 {%x, %y}, [%offset64];")
    assert only(launch(text, Buffer("u32", [0] * 40))).count == 16


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (
            "st.global.b32 [%p], %x;",
            "st.global.b32 [%p], %x;",
            "global memory written by two warps",
        ),
        (
            "st.global.b32 [%p], %x;",
            "ld.global.b32 %x, [%p];",
            "global memory read after another warp wrote it",
        ),
        (
            "ld.global.b32 %x, [%p];",
            "st.global.b32 [%p], %x;",
            "global memory written after another warp read it",
        ),
    ],
)
@pytest.mark.parametrize("blocks", [1, 2])
def test_warps_that_meet_in_global_memory(first: str, second: str, kind: str, blocks: int) -> None:
    """Warp 0 does one thing and warp 1 another, in one block or in two."""
    body = f"""
    .reg .b32 %x, %warp;
    .reg .pred %p;
    mov.u32 %x, 1;
    mov.u32 %warp, {"%ctaid.x" if blocks == 2 else "%tid.x"};
    shr.u32 %warp, %warp, {0 if blocks == 2 else 5};
    setp.eq.u32 %p, %warp, 0;
    @!%p bra SECOND;
    {first}
    ret;
    SECOND:
    {second}
    """.replace("%p]", "%memory]")
    text = kernel(body, ["memory"])
    memory = Buffer("u32", [0])
    found = launch(text, memory, threads=64 // blocks, blocks=blocks)
    assert kinds(found) == {kind}
    # Another launch is another time.
    alone = kernel(f".reg .b32 %x; mov.u32 %x, 1; {second}".replace("%p]", "%memory]"), ["memory"])
    assert launch(alone, memory, permit=False) == []
    interpreter().set(find_races=False)
    assert launch(text, memory, threads=64 // blocks, blocks=blocks) == []


def test_global_memory_that_a_warp_writes_twice() -> None:
    store = access("st.global.b32 [%offset64], %x;")
    again = access("st.global.b32 [%offset64], %x; st.global.b32 [%offset64], %x;")
    by_two_lanes = access("st.global.b32 [%offset64], %x;", scale=0)
    for text in (again, by_two_lanes):
        assert launch(text, Buffer("u32", [0] * 32)) == []
    interpreter().set(find_rewrites=True)
    assert launch(store, Buffer("u32", [0] * 32)) == []
    assert only(launch(again, Buffer("u32", [0] * 32))).count == 32
    found = only(launch(by_two_lanes, Buffer("u32", [0] * 32)))
    assert (found.kind, found.count) == ("global memory written twice", 31)


def test_a_warp_among_several_that_read_writes() -> None:
    body = """
    .reg .b32 %x;
    .reg .pred %p;
    ld.global.b32 %x, [%memory];
    setp.ge.u32 %p, %lane, 63;
    @%p st.global.b32 [%memory], %x;
    """
    found = only(launch(kernel(body, ["memory"]), Buffer("u32", [0]), threads=64))
    assert found.kind == "global memory written after another warp read it"


def test_read_only_loads_of_what_the_kernel_wrote() -> None:
    body = """
    .reg .b32 %x;
    mov.u32 %x, 1;
    st.global.b32 [%p], %x;
    ld.global.nc.b32 %x, [%p];
    """
    found = only(launch(kernel(body, ["p"]), Buffer("u32", [0]), threads=1))
    assert found.kind == "ld.global.nc of what the kernel wrote"
    text = kernel(body.replace(".nc", ""), ["p"])
    assert launch(text, Buffer("u32", [0]), threads=1) == []


# ---- shared memory -------------------------------------------------------------------------------


def in_shared(body: str, shared: int = 128, threads: int = 32) -> list[Any]:
    declared = """
    .reg .b32 %at, %x, %warp;
    .reg .pred %p;
    mov.u32 %x, 1;
    mad.lo.u32 %at, %lane, 4, memory;
    shr.u32 %warp, %lane, 5;
    """
    text = kernel(declared + body, shared=SHARED)
    return launch(text, shared=shared, threads=threads)


def test_shared_accesses_out_of_bounds_misaligned_or_uninitialised() -> None:
    found = only(in_shared("st.shared.b32 [%at], %x;", shared=124))
    assert (found.kind, found.count) == ("shared access out of bounds", 1)
    found = only(in_shared("st.shared.b32 [%at+-4], %x;", shared=124))
    assert (found.kind, found.count) == ("shared access out of bounds", 1)
    assert only(in_shared("st.shared.b32 [%at+2], %x;", 256)).kind == "misaligned shared access"
    read = "ld.shared.b32 %x, [%at];"
    assert only(in_shared(read)).kind == "read of uninitialised shared memory"
    assert in_shared("st.shared.b32 [%at], %x; " + read) == []


def test_what_nobody_wrote_is_not_a_number() -> None:
    body = """
    .reg .b32 %x;
    ld.shared.b32 %x, [memory];
    st.global.b32 [%out], %x;
    """
    out = Buffer("u32", [0])
    launch(kernel(body, ["out"], shared=SHARED), out, threads=1, shared=4)
    assert out.values() == [2**32 - 1]


NEXT = "xor.b32 %at, %at, {}; "  # from a lane's own place to another's


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("st.shared.b32 [%at], %x;", "ld.shared.b32 %x, [%at];", "race: shared read after another"),
        (
            "ld.shared.b32 %x, [%at];",
            "st.shared.b32 [%at], %x;",
            "race: shared write after another",
        ),
        ("st.shared.b32 [%at], %x;", "st.shared.b32 [%at], %lane;", "race: two threads write"),
    ],
)
@pytest.mark.parametrize(("distance", "threads"), [(4, 32), (128, 64)], ids=["lanes", "warps"])
def test_unordered_accesses_to_shared_memory(
    before: str, after: str, kind: str, distance: int, threads: int
) -> None:
    """Each lane touches its own word, then that of another lane of the warp, or of another warp."""
    start = "st.shared.b32 [%at], %x; bar.sync 0; "  # initialised and ordered
    move = NEXT.format(distance)

    def kinds_with(barrier: str) -> set[str]:
        body = start + before + barrier + move + after
        return kinds(in_shared(body, shared=256, threads=threads))

    found = kinds_with("")
    assert any(each.startswith(kind) for each in found)
    # Two warps meet at both words, in turns: the second may also overwrite what the first has read.
    assert all(each.startswith("race: ") for each in found)
    assert len(found) == 1 or threads == 64
    assert kinds_with("bar.sync 0; ") == set()
    within_warp = kinds_with("bar.warp.sync -1; ")
    assert bool(within_warp) == (threads == 64)


def test_barrier_of_the_block_orders_lanes_beside_what_nobody_wrote() -> None:
    body = f"""
    .reg .b32 %y;
    mad.lo.u32 %at, %lane, 8, memory;
    st.shared.b32 [%at], %x;
    bar.sync 0;
    {NEXT.format(8)}
    ld.shared.v2.b32 {{%x, %y}}, [%at];
    """
    assert kinds(in_shared(body, 256)) == {"read of uninitialised shared memory"}


def test_barrier_of_a_few_lanes_orders_nothing() -> None:
    body = f"""
    st.shared.b32 [%at], %x;
    setp.lt.u32 %p, %lane, 16;
    @%p bra FEW;
    bar.warp.sync 0xffff0000;
    bra ALL;
    FEW:
    bar.warp.sync 0xffff;
    ALL:
    {NEXT.format(4)}
    ld.shared.b32 %x, [%at];
    """
    assert in_shared(body) != []


def test_shuffles_and_collectives_order_no_memory() -> None:
    body = f"""
    st.shared.b32 [%at], %x;
    shfl.sync.bfly.b32 %x, %x, 1, 31, -1;
    {NEXT.format(4)}
    ld.shared.b32 %x, [%at];
    """
    assert only(in_shared(body)).kind.startswith("race: shared read after another")


def test_one_value_may_be_written_twice() -> None:
    assert in_shared("st.shared.b32 [memory], %x;") == []
    assert only(in_shared("st.shared.b32 [memory], %lane;")).kind.startswith("race: two threads")


def test_matrix_rows_are_of_the_whole_warp() -> None:
    body = """
    .reg .b32 %d;
    mad.lo.u32 %at, %lane, 16, memory;
    st.shared.v4.b32 [%at], {%x, %x, %x, %x};
    BARRIER
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d}, [%at];
    BARRIER
    st.shared.v4.b32 [%at], {%x, %x, %x, %x};
    """
    first, _, last = body.rpartition("BARRIER")
    wait = "bar.warp.sync -1;"
    assert in_shared(body.replace("BARRIER", wait), 512) == []
    unordered = in_shared(first.replace("BARRIER", "") + wait + last, 512)
    assert only(unordered).kind.startswith("race: shared read after another")
    unordered = in_shared(first.replace("BARRIER", wait) + last, 512)
    assert only(unordered).kind.startswith("race: shared write after another")


# ---- counters ------------------------------------------------------------------------------------


def counters_of(text: str, *buffers: Buffer, **options: int) -> dict[str, int]:
    machine = interpreter()
    machine.take_counters()
    assert launch(text, *buffers, **options) == []
    counters: dict[str, int] = machine.take_counters()
    return counters


@pytest.mark.parametrize(
    ("scale", "offset", "sectors"), [(4, 0, 4), (4, 16, 5), (8, 0, 8), (32, 0, 32), (0, 0, 1)]
)
def test_sectors_of_global_memory(scale: int, offset: int, sectors: int) -> None:
    memory = Buffer("u32", [0] * 300)
    counters = counters_of(access(f"ld.global.b32 %x, [%offset64+{offset}];", scale), memory)
    assert counters["global_sectors_read"] == sectors
    assert counters["global_bytes_read"] == (128 if scale else 4)  # once what lanes share
    assert counters["global_bytes_written"] == counters["global_sectors_written"] == 0
    if scale:
        counters = counters_of(access(f"st.global.b16 [%offset64+{offset}], %x;", scale), memory)
        assert counters["global_sectors_written"] == sectors
        assert counters["global_bytes_written"] == 64


def test_sectors_of_lanes_in_any_order() -> None:
    body = """
    .reg .b32 %x;
    xor.b32 %lane, %lane, 21;
    mad.wide.u32 %offset64, %lane, 4, %p;
    ld.global.b32 %x, [%offset64];
    """
    assert counters_of(kernel(body, ["p"]), Buffer("u32", [0] * 32))["global_sectors_read"] == 4


@pytest.mark.parametrize(
    ("type", "vector", "scale", "needed", "ideal"),
    [
        ("b32", 1, 4, 1, 1),
        ("b32", 1, 0, 1, 1),  # one word for all
        ("b16", 1, 2, 1, 1),  # two lanes a word
        ("b32", 1, 8, 2, 1),
        ("b32", 1, 128, 32, 1),
        ("b32", 1, 132, 1, 1),
        ("b32", 2, 8, 2, 2),
        ("b32", 2, 16, 4, 2),
        ("b32", 4, 16, 4, 4),
        ("b32", 4, 32, 8, 4),
        ("b32", 4, 144, 4, 4),
    ],
)
def test_wavefronts_of_shared_memory(
    type: str, vector: int, scale: int, needed: int, ideal: int
) -> None:
    registers = ", ".join(["%zero" if type == "b32" else "%h"] * vector)
    suffix = f".v{vector}.{type}" if vector > 1 else f".{type}"
    loaded = ", ".join(f"%{'w' if type == 'b32' else 'g'}{i}" for i in range(vector))
    body = f"""
    .reg .b32 %at, %w<4>;
    .reg .b16 %h, %g<4>;
    mov.b16 %h, 0;
    mad.lo.u32 %at, %lane, {scale}, memory;
    st.shared{suffix} [%at], {{{registers}}};
    ld.shared{suffix} {{{loaded}}}, [%at];
    """
    if scale == 0:  # all write one value; then it may be read
        body = body.replace("ld.shared", "bar.warp.sync -1; ld.shared")
    counters = counters_of(kernel(body, shared=SHARED), shared=132 * 36)
    assert counters["shared_store_wavefronts"] == counters["shared_load_wavefronts"] == needed
    assert counters["shared_store_wavefronts_ideal"] == ideal
    assert counters["shared_load_wavefronts_ideal"] == ideal


def test_counts_of_launches_blocks_and_instructions() -> None:
    body = """
    .reg .pred %p;
    .reg .b32 %x;
    bar.sync 0;
    bar.warp.sync -1;
    setp.lt.u32 %p, %lane, 0;
    @%p mov.u32 %x, 1;
    """
    counters = counters_of(kernel(body), threads=64, blocks=3)
    assert (counters["launches"], counters["blocks"]) == (1, 3)
    # Two instructions before the body, four of it and ret, for two warps of three blocks.
    assert counters["warp_instructions"] == 6 * 7
    assert counters["block_barriers"] == counters["warp_barriers"] == 6
    assert set(interpreter().take_counters().values()) == {0}
