"""mma, ldmatrix and stmatrix: fragments, sums, and the lanes they need."""

from __future__ import annotations

import math

import pytest
import torch

from .machine import SHARED, Buffer, Value, bits_of, interpreter, kernel, launch, line_of


def words_of(matrix: torch.Tensor) -> list[Value]:
    """Pairs of 16-bit elements in the order of a tensor, the first in the lower half."""
    pairs = matrix.contiguous().view(torch.int16).reshape(-1, 2).to(torch.int32) & 0xFFFF
    return [int(low) | int(high) << 16 for low, high in pairs.tolist()]


def places_of_a(lane: int, k: int) -> list[tuple[int, int]]:
    """Row and column of a lane's elements of A, the lower half of each register first.

    PTX ISA 9.0, 9.7.14.5.7 "Matrix Fragments for mma.m16n8k8", for .f16 and .bf16: a0 and a1 in row
    groupID, a2 and a3 in groupID + 8, columns threadID_in_group * 2 + (i & 1). 9.7.14.5.8 "...
    mma.m16n8k16 with floating point type": row groupID for i < 2 and 4 <= i < 6, else groupID + 8;
    8 columns further for i >= 4.
    """
    group, thread = lane >> 2, lane % 4
    return [
        (group + (8 if i & 2 else 0), thread * 2 + (i & 1) + (8 if i >= 4 else 0))
        for i in range(k // 2)
    ]


def places_of_b(lane: int, k: int) -> list[tuple[int, int]]:
    """Row and column of a lane's elements of B, in the order of `places_of_a`.

    9.7.14.5.7: row threadID_in_group * 2 + i, column groupID. 9.7.14.5.8: rows
    threadID_in_group * 2 + (i & 1), 8 further for i >= 2.
    """
    group, thread = lane >> 2, lane % 4
    return [(thread * 2 + (i & 1) + (8 if i >= 2 else 0), group) for i in range(k // 4)]


def places_of_c(lane: int) -> list[tuple[int, int]]:
    """Row and column of a lane's elements of C and D, a register each.

    9.7.14.5.7 and 9.7.14.5.8: row groupID for c0 and c1, groupID + 8 for c2 and c3, columns
    threadID_in_group * 2 + (i & 1).
    """
    group, thread = lane >> 2, lane % 4
    return [(group + (8 if i >= 2 else 0), thread * 2 + (i & 1)) for i in range(4)]


def product(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Compute a (16 x K) times b (K x 8) plus c (16 x 8) by one mma, on fragments as above."""
    k = a.shape[1]
    name = {torch.float16: "f16", torch.bfloat16: "bf16"}[a.dtype]
    a_elements = torch.stack([a[place] for lane in range(32) for place in places_of_a(lane, k)])
    b_elements = torch.stack([b[place] for lane in range(32) for place in places_of_b(lane, k)])
    a_registers, b_registers = words_of(a_elements), words_of(b_elements)
    c_registers = [bits_of(float(c[place])) for lane in range(32) for place in places_of_c(lane)]
    na, nb = k // 4, k // 8

    def registers(letter: str, count: int) -> str:
        return "{" + ", ".join(f"%{letter}{i}" for i in range(count)) + "}"

    def load(letter: str, count: int) -> str:
        address = f"mad.wide.u32 %offset64, %lane, {4 * count}, %p_{letter};\n"
        return address + "\n".join(
            f"ld.global.b32 %{letter}{i}, [%offset64+{4 * i}];" for i in range(count)
        )

    body = f"""
    .reg .b32 %a<4>, %b<2>, %c<4>, %d<4>;
    {load("a", na)}
    {load("b", nb)}
    {load("c", 4)}
    mma.sync.aligned.m16n8k{k}.row.col.f32.{name}.{name}.f32
        {registers("d", 4)}, {registers("a", na)}, {registers("b", nb)}, {registers("c", 4)};
    mad.wide.u32 %offset64, %lane, 16, %p_out;
    st.global.v4.b32 [%offset64], {registers("d", 4)};
    """
    out = Buffer("f32", [0.0] * 128)
    buffers = [Buffer("b32", x) for x in (a_registers, b_registers, c_registers)]
    found = launch(kernel(body, ["p_a", "p_b", "p_c", "p_out"]), *buffers, out)
    assert not found, found
    d = torch.full((16, 8), math.nan)
    places = [place for lane in range(32) for place in places_of_c(lane)]
    for place, value in zip(places, out.values(), strict=True):
        d[place] = value
    return d


@pytest.mark.parametrize("k", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_product_of_matrices(k: int, dtype: torch.dtype) -> None:
    # Small integers: every sum is exact, and every element of the operands is different from others
    # in its row and column.
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-8, 9, (16, k), generator=generator).to(dtype)
    b = torch.randint(-8, 9, (k, 8), generator=generator).to(dtype)
    c = torch.randint(-99, 100, (16, 8), generator=generator).float()
    assert torch.equal(product(a, b, c), a.float() @ b.float() + c)
    for row in range(16):  # each element of a by itself
        one = torch.zeros_like(a)
        one[row, row % k] = 1
        assert torch.equal(product(one, b, c), one.float() @ b.float() + c)


def test_sums_are_cut_off_or_rounded() -> None:
    # 1 + 1.5 units of its last place: cut off to one unit, rounded to two.
    a, b = torch.zeros(16, 16, dtype=torch.bfloat16), torch.zeros(16, 8, dtype=torch.bfloat16)
    c = torch.ones(16, 8)
    a[:, 0], b[0, :] = 1.5 * 2**-12, 2**-11
    a[8:] *= -1  # below 1, a unit is half as large: 1 - 1.5 * 2^-23 is exact
    computed = product(a, b, c)
    assert computed[:8].eq(1 + 2**-23).all()
    assert computed[8:].eq(1 - 1.5 * 2**-23).all()
    interpreter().set(matrix_sum="rounded")
    assert product(a, b, c)[:8].eq(1 + 2**-22).all()


def test_eight_products_make_one_sum() -> None:
    # Each half of 16 products adds five eighths of a unit to 1. Cut off after eight products, each
    # of them is lost; in one sum they round to one unit.
    a, b = torch.zeros(16, 16, dtype=torch.bfloat16), torch.zeros(16, 8, dtype=torch.bfloat16)
    a[:, 0] = a[:, 8] = 0.625 * 2**-12
    b[0], b[8] = 2**-11, 2**-11
    assert product(a, b, torch.ones(16, 8)).eq(1).all()
    interpreter().set(matrix_sum="rounded")
    assert product(a, b, torch.ones(16, 8)).eq(1 + 2**-23).all()


def test_special_values_in_products() -> None:
    a, b = torch.zeros(16, 16, dtype=torch.float16), torch.zeros(16, 8, dtype=torch.float16)
    a[0, 0], a[1, 0], a[2, 0] = math.inf, math.nan, 2**-24
    b[0] = 1
    computed = product(a, b, torch.zeros(16, 8))
    assert computed[0].eq(math.inf).all()
    assert computed[1].view(torch.int32).eq(0x7FFFFFFF).all()
    assert computed[2].eq(2**-24).all()  # a subnormal operand counts


# ---- ldmatrix, stmatrix --------------------------------------------------------------------------


def load_matrices(count: int, transposed: bool, pitch: int = 16) -> tuple[list[int], str]:
    """Read `count` matrices whose element (m, row, column) is 100 m + 10 row + column."""
    names = ", ".join(f"%d{i}" for i in range(count))
    trans = ".trans" if transposed else ""
    body = f"""
    .reg .b32 %d<4>, %at, %to;
    .reg .pred %p;
    mov.u32 %at, memory;
    mad.lo.u32 %at, %lane, {pitch}, %at;
    mad.wide.u32 %offset64, %lane, 16, %in;
    .reg .b32 %w<4>;
    setp.lt.u32 %p, %lane, {8 * count};
    @%p ld.global.v4.b32 {{%w0, %w1, %w2, %w3}}, [%offset64];
    @%p st.shared.v4.b32 [%at], {{%w0, %w1, %w2, %w3}};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%at];
    mad.wide.u32 %offset64, %lane, {4 * count}, %out;
    """
    body += "\n".join(f"st.global.b32 [%offset64+{4 * i}], %d{i};" for i in range(count))
    numbers = [
        100 * m + 10 * row + column for m in range(count) for row in range(8) for column in range(8)
    ]
    source, out = Buffer("u16", numbers), Buffer("u16", [0] * 64 * count)
    text = kernel(body, ["in", "out"], shared=SHARED)
    assert launch(text, source, out, shared=32 * pitch) == []
    return [int(value) for value in out.values()], text


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_from_shared_memory(count: int, transposed: bool) -> None:
    loaded, _ = load_matrices(count, transposed)
    for lane in range(32):
        for m in range(count):
            row, first = lane // 4, lane % 4 * 2
            for i in range(2):
                place = (first + i, row) if transposed else (row, first + i)
                expected = 100 * m + 10 * place[0] + place[1]
                assert loaded[2 * (lane * count + m) + i] == expected


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_to_shared_memory(count: int, transposed: bool) -> None:
    names = ", ".join(f"%s{i}" for i in range(count))
    trans = ".trans" if transposed else ""
    # Lane l has in register m the elements 64 m + 2 l and 64 m + 2 l + 1.
    body = f"""
    .reg .b32 %s<4>, %at;
    .reg .pred %p;
    mad.lo.u32 %s0, %lane, 0x20002, 0x10000;
    add.u32 %s1, %s0, 0x400040;
    add.u32 %s2, %s1, 0x400040;
    add.u32 %s3, %s2, 0x400040;
    mov.u32 %at, memory;
    mad.lo.u32 %at, %lane, 16, %at;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%at], {{{names}}};
    bar.warp.sync -1;
    setp.lt.u32 %p, %lane, {8 * count};
    @%p ld.shared.v4.b32 {{%s0, %s1, %s2, %s3}}, [%at];
    mad.wide.u32 %offset64, %lane, 16, %out;
    @%p st.global.v4.b32 [%offset64], {{%s0, %s1, %s2, %s3}};
    """
    out = Buffer("u16", [0] * 64 * count)
    machine = interpreter()
    machine.take_counters()
    assert launch(kernel(body, ["out"], shared=SHARED), out, shared=512) == []
    counters = machine.take_counters()
    assert counters["matrices_written"] == counters["matrix_write_passes"] == count
    stored = torch.tensor(out.values()).view(count, 8, 8)
    expected = torch.arange(64 * count).view(count, 8, 8)
    assert torch.equal(stored, expected.transpose(1, 2) if transposed else expected)


def test_passes_over_the_banks() -> None:
    machine = interpreter()
    for pitch, passes in ((16, 4), (32, 8), (64, 16), (128, 32), (144, 4)):
        machine.take_counters()
        load_matrices(4, transposed=False, pitch=pitch)
        counters = machine.take_counters()
        assert (counters["matrices_read"], counters["matrix_passes"]) == (4, passes)


def test_row_outside_of_shared_memory() -> None:
    body = """
    .reg .b32 %d<2>, %at;
    mov.u32 %at, memory;
    st.shared.b32 [%at], %zero;
    add.u32 %at, %at, 4;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d0}, [%at];
    """
    text = kernel(body, shared=SHARED)
    (found,) = launch(text, shared=128)
    assert (found.kind, found.line) == ("misaligned shared access", line_of(text, "ldmatrix"))
    (found,) = launch(text.replace("%at, 4", "%at, 128"), shared=128)
    assert found.kind == "shared access out of bounds"


@pytest.mark.parametrize("condition", ["lt.u32 %p, %lane, 16", "ge.u32 %p, %lane, 1"])
def test_matrices_need_the_whole_warp(condition: str) -> None:
    body = f"""
    .reg .b32 %d<2>;
    .reg .pred %p;
    setp.{condition};
    @%p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%d0}}, [%zero];
    """
    text = kernel(body, shared=SHARED)
    with pytest.raises(interpreter().Refusal, match=f":{line_of(text, 'ldmatrix')}: .*guard"):
        launch(text, shared=128)
    body = f"""
    .reg .b32 %d<2>;
    .reg .pred %p;
    setp.{condition};
    @%p exit;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%d0}}, [%zero];
    """
    with pytest.raises(interpreter().Refusal, match="lanes of the warp have exited"):
        launch(kernel(body, shared=SHARED), shared=128)


def test_products_wait_for_diverged_lanes() -> None:
    body = """
    .reg .b32 %a<2>, %b, %r;
    .reg .b32 %d<4>;
    .reg .pred %p;
    mov.u32 %r, 0x3C003C00;
    setp.lt.u32 %p, %lane, 7;
    @%p bra TWO;
    mov.u32 %r, 0x3C003C00;
    TWO:
    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3}, {%r, %r}, {%r},
        {%zero, %zero, %zero, %zero};
    mad.wide.u32 %offset64, %lane, 16, %out;
    st.global.v4.b32 [%offset64], {%d0, %d1, %d2, %d3};
    """
    for order in ("forward", "reverse", "random"):
        interpreter().set(lane_order=order)
        out = Buffer("f32", [0.0] * 128)
        assert launch(kernel(body, ["out"]), out) == []
        assert out.values() == [8.0] * 128
