"""Floating point instructions and conversions: NaN, signed zeros, subnormals, ties, overflow."""

from __future__ import annotations

import math

import pytest
import torch

from .machine import Buffer, Value, bits_of, compute, interpreter, kernel, launch

NAN = 0x7FFFFFFF  # the bits of every result that is not a number
INF, ONE, MINUS = bits_of(math.inf), bits_of(1), 0x80000000
OTHER_NAN = 0xFFC01234
SUBNORMAL = 0x00000001


@pytest.mark.parametrize(
    ("instruction", "a", "b", "expected"),
    [
        ("add.f32", [ONE, INF, MINUS, OTHER_NAN], [bits_of(2**-24), INF | MINUS, MINUS, ONE],
         [ONE, NAN, MINUS, NAN]),
        ("add.rn.f32", [ONE], [bits_of(1.5 * 2**-23)], [ONE + 2]),  # a tie, to even
        ("add.f32", [SUBNORMAL], [SUBNORMAL], [2]),
        ("sub.f32", [ONE, INF], [ONE, INF], [0, NAN]),
        ("mul.f32", [0, MINUS, bits_of(2.0**100)], [INF, ONE, bits_of(2.0**100)],
         [NAN, MINUS, INF]),
        ("div.rn.f32", [ONE, ONE, 0], [bits_of(3), MINUS, 0], [0x3EAAAAAB, INF | MINUS, NAN]),
        ("min.f32", [0, MINUS, OTHER_NAN, ONE, OTHER_NAN], [MINUS, 0, ONE, OTHER_NAN, OTHER_NAN],
         [MINUS, MINUS, ONE, ONE, NAN]),
        ("max.f32", [0, MINUS, OTHER_NAN, ONE, INF], [MINUS, 0, ONE, OTHER_NAN, ONE],
         [0, 0, ONE, ONE, INF]),
        ("max.NaN.f32", [0, OTHER_NAN, ONE], [MINUS, ONE, OTHER_NAN], [0, NAN, NAN]),
        ("min.NaN.f32", [0, OTHER_NAN, ONE], [MINUS, ONE, bits_of(2)], [MINUS, NAN, ONE]),
    ],
)  # fmt: skip
def test_of_two(instruction: str, a: list[Value], b: list[Value], expected: list[Value]) -> None:
    assert compute(f"{instruction} %d, %a, %b;", "b32", a=("b32", a), b=("b32", b)) == expected


def test_signs_change_without_looking_at_the_number() -> None:
    values: list[Value] = [ONE, OTHER_NAN, 0, INF | MINUS]
    negated = compute("neg.f32 %d, %a;", "b32", a=("b32", values))
    assert negated == [ONE | MINUS, OTHER_NAN ^ MINUS, MINUS, INF]
    assert compute("abs.f32 %d, %a;", "b32", a=("b32", values)) == [ONE, 0x7FC01234, 0, INF]


def test_fused_product_and_sum_is_rounded_once() -> None:
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: its last bit survives only in the fused sum.
    x = bits_of(1 + 2**-12)
    operands = {"a": ("b32", [x, INF]), "b": ("b32", [x, 0]), "c": ("b32", [bits_of(-1), ONE])}
    fused = compute("fma.rn.f32 %d, %a, %b, %c;", "b32", **operands)
    assert fused == [bits_of(2**-11 + 2**-24), NAN]


def test_roots_and_reciprocals() -> None:
    values: list[Value] = [bits_of(2), 0, bits_of(-1)]
    assert compute("sqrt.rn.f32 %d, %a;", "b32", a=("b32", values)) == [0x3FB504F3, 0, NAN]
    values = [bits_of(3), MINUS, INF, SUBNORMAL]
    expected = [0x3EAAAAAB, INF | MINUS, 0, INF]
    assert compute("rcp.rn.f32 %d, %a;", "b32", a=("b32", values)) == expected
    # .ftz takes a subnormal number for zero, and makes one zero.
    below = bits_of(2.0**-127)  # its reciprocal would be a float
    values = [below, below | MINUS, bits_of(2.0**127)]
    flushed = compute("rcp.approx.ftz.f32 %d, %a;", "b32", a=("b32", values))
    assert flushed == [INF, INF | MINUS, 0]
    assert compute("rsqrt.approx.f32 %d, %a;", "f32", a=("f32", [4.0, 0.0])) == [0.5, math.inf]
    assert compute("sqrt.approx.ftz.f32 %d, %a;", "f32", a=("f32", [9.0])) == [3.0]
    assert compute("div.full.f32 %d, %a, 0f40400000;", "f32", a=("f32", [6.0])) == [2.0]


def test_powers_of_two() -> None:
    values = [0.0, 3.0, -2.0, 128.0, math.inf, -math.inf, -130.0]
    powers = [1.0, 8.0, 0.25, math.inf, math.inf, 0.0, 2.0**-130]
    assert compute("ex2.approx.f32 %d, %a;", "f32", a=("f32", values)) == powers
    powers[-1] = 0.0
    values, powers = [*values, -126.0], [*powers, 2.0**-126]  # a normal number stays
    assert compute("ex2.approx.ftz.f32 %d, %a;", "f32", a=("f32", values)) == powers
    assert compute("ex2.approx.f32 %d, %a;", "b32", a=("b32", [OTHER_NAN])) == [NAN]


def test_approximations_are_off_by_what_is_set() -> None:
    machine = interpreter()
    values = [1.0 + i / 7 for i in range(32)]
    exact = compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", values))
    machine.set(approximation_error=2, random_approximation=False)
    off = compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", values))
    assert off == [bits + 2 for bits in exact]
    machine.set(approximation_error=-1)
    assert compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", [1.0])) == [ONE - 1]
    machine.set(approximation_error=2, random_approximation=True)
    chosen = compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", values))
    assert {int(a) - int(b) for a, b in zip(chosen, exact, strict=True)} == {-2, -1, 0, 1, 2}
    machine.set(seed=2)
    assert compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", values)) != chosen
    divided = compute("div.full.f32 %d, 0f3F800000, %a;", "b32", a=("f32", values))
    assert {int(a) - int(b) for a, b in zip(divided, exact, strict=True)} == {-2, -1, 0, 1, 2}
    # Equal operands have equal results.
    assert len(set(compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", [3.0] * 32)))) == 1
    # Exact instructions and special values stay as they are.
    machine.set(random_approximation=False)
    assert compute("rcp.rn.f32 %d, %a;", "b32", a=("f32", values)) == exact
    assert compute("rcp.approx.f32 %d, %a;", "b32", a=("f32", [math.inf])) == [0]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [  # of (1, 2), (2, 2), (3, 2), (NaN, 2)
        ("eq", [0, 1, 0, 0]), ("ne", [1, 0, 1, 0]), ("lt", [1, 0, 0, 0]), ("le", [1, 1, 0, 0]),
        ("gt", [0, 0, 1, 0]), ("ge", [0, 1, 1, 0]), ("equ", [0, 1, 0, 1]), ("neu", [1, 0, 1, 1]),
        ("ltu", [1, 0, 0, 1]), ("leu", [1, 1, 0, 1]), ("gtu", [0, 0, 1, 1]),
        ("geu", [0, 1, 1, 1]), ("num", [1, 1, 1, 0]), ("nan", [0, 0, 0, 1]),
    ],
)  # fmt: skip
def test_comparisons(comparison: str, expected: list[Value]) -> None:
    a, b = [1.0, 2.0, 3.0, math.nan], [2.0] * 4
    text = f"setp.{comparison}.f32 %d, %a, %b;"
    assert compute(text, "pred", a=("f32", a), b=("f32", b)) == expected
    halves = [0x3C00, 0x4000, 0x4200, 0x7E00]
    text = f"setp.{comparison}.f16 %d, %a, %b;"
    assert compute(text, "pred", a=("b16", halves), b=("b16", [0x4000] * 4)) == expected
    halves = [0x3F80, 0x4000, 0x4040, 0x7FC0]
    text = f"setp.{comparison}.bf16 %d, %a, %b;"
    assert compute(text, "pred", a=("b16", halves), b=("b16", [0x4000] * 4)) == expected
    # Pairs compare the lower halves first, here always 2 with 2.
    pairs = [half << 16 | 0x4000 for half in halves]
    for register, wanted in (("%q", [expected[1]] * 4), ("%d", expected)):
        order = f"%q|{register}" if register == "%d" else "%d|%q"
        text = f"setp.{comparison}.bf16x2 {order}, %a, %b;"
        computed = compute(text, "pred", a=("b32", pairs), b=("b32", [0x40004000] * 4))
        assert computed == wanted


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [("eq", [0, 1, 0]), ("ne", [1, 0, 1]), ("lt", [1, 0, 0]), ("le", [1, 1, 0]),
     ("gt", [0, 0, 1]), ("ge", [0, 1, 1])],
)  # fmt: skip
def test_comparisons_of_integers(comparison: str, expected: list[Value]) -> None:
    operands = {"a": ("s32", [-1, 0, 1]), "b": ("s32", [0, 0, 0])}
    assert compute(f"setp.{comparison}.s32 %d, %a, %b;", "pred", **operands) == expected
    operands = {"a": ("s64", [-(2**40), 0, 2**40]), "b": ("s64", [0, 0, 0])}
    assert compute(f"setp.{comparison}.s64 %d, %a, %b;", "pred", **operands) == expected
    operands = {"a": ("s16", [-1, 0, 1]), "b": ("s16", [0, 0, 0])}
    assert compute(f"setp.{comparison}.s16 %d, %a, %b;", "pred", **operands) == expected
    operands = {"a": ("u16", [1, 2, 65535]), "b": ("u16", [2, 2, 2])}
    assert compute(f"setp.{comparison}.u16 %d, %a, %b;", "pred", **operands) == expected


def test_predicates_and_selection() -> None:
    operands = {"a": ("s32", [0, 0, 1, 1]), "b": ("s32", [0, 1, 0, 1])}
    two = "setp.ne.s32 %p, %a, 0; setp.ne.s32 %q, %b, 0;"
    for operation, expected in (
        ("and.pred %d, %p, %q;", [0, 0, 0, 1]),
        ("or.pred %d, %p, %q;", [0, 1, 1, 1]),
        ("xor.pred %d, %p, %q;", [0, 1, 1, 0]),
        ("not.pred %d, %p;", [1, 1, 0, 0]),
        ("mov.pred %d, %q;", [0, 1, 0, 1]),
        ("mov.pred %d, -1;", [1, 1, 1, 1]),
    ):
        assert compute(f"{two} {operation}", "pred", **operands) == expected
    assert compute(f"{two} selp.b32 %d, %b, 7, %p;", "s32", **operands) == [7, 7, 0, 1]
    assert compute(f"{two} selp.b16 %d, 1, 2, %q;", "b16", **operands) == [2, 1, 2, 1]
    assert compute(f"{two} selp.b64 %d, 1, 2, %q;", "b64", **operands) == [2, 1, 2, 1]


# ---- conversions ---------------------------------------------------------------------------------


def all_of(instruction: str, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Execute `instruction`, from %a to %d, for every element of a tensor."""
    size, out_size = inputs.element_size(), outputs.element_size()
    body = f"""
    .reg .b32 %block;
    .reg .b{8 * size} %a;
    .reg .b{8 * out_size} %d;
    mov.u32 %block, %ctaid.x;
    mad.lo.u32 %lane, %block, 1024, %lane;
    mad.wide.u32 %offset64, %lane, {size}, %in;
    ld.global.b{8 * size} %a, [%offset64];
    {instruction}
    mad.wide.u32 %offset64, %lane, {out_size}, %out;
    st.global.b{8 * out_size} [%offset64], %d;
    """
    machine = interpreter()
    machine.load("test.ptx", kernel(body, ["in", "out"]))
    machine.forbid_all()
    for tensor in (inputs, outputs):
        machine.permit(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    pointers = [t.data_ptr().to_bytes(8, "little") for t in (inputs, outputs)]
    assert inputs.numel() % 1024 == 0
    machine.launch("test", (inputs.numel() // 1024, 1, 1), (1024, 1, 1), 0, pointers)
    assert machine.take_findings() == []
    return outputs


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_16_bit_value_has_its_float(name: str) -> None:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[name]
    inputs = torch.arange(2**16).to(torch.uint16).view(dtype)
    floats = all_of(f"cvt.f32.{name} %d, %a;", inputs, torch.empty(2**16))
    expected = inputs.float()
    nan = expected.isnan()
    assert torch.equal(floats.view(torch.int32)[~nan], expected.view(torch.int32)[~nan])
    assert floats.view(torch.int32)[nan].eq(NAN).all()


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_rounding_to_16_bits(name: str) -> None:
    """Every 16-bit value, the ties behind it, and their neighbours, of both signs."""
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[name]
    values = torch.arange(2**15 - 1).to(torch.int16).view(dtype)
    floats = values.float()
    after = torch.arange(1, 2**15).to(torch.int16).view(dtype).float()
    ties = floats + (after - floats) / 2
    around = [ties.nan_to_num(posinf=65520.0), torch.nextafter(ties, floats), floats]
    around += [torch.nextafter(ties, after), torch.full_like(floats, 3.0e38), after]
    inputs = torch.cat([*around, *(-x for x in around)])
    inputs = torch.cat([inputs, inputs.new_zeros(-inputs.numel() % 1024)])

    rounded = all_of(f"cvt.rn.{name}.f32 %d, %a;", inputs, torch.empty_like(inputs, dtype=dtype))
    assert_same_values(rounded, inputs.to(dtype))

    cut = all_of(f"cvt.rz.{name}.f32 %d, %a;", inputs, torch.empty_like(inputs, dtype=dtype))
    nearest = inputs.to(dtype)
    further = nearest.float().abs() > inputs.abs()
    # The next value toward zero has bits that are one less.
    toward_zero = torch.where(further, nearest.view(torch.int16) - 1, nearest.view(torch.int16))
    assert_same_values(cut, toward_zero.view(dtype))


def assert_same_values(computed: torch.Tensor, expected: torch.Tensor) -> None:
    nan = expected.isnan()
    assert torch.equal(computed.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])
    assert computed.view(torch.int16)[nan].eq(0x7FFF).all()


def test_pairs_are_rounded_with_the_first_source_above() -> None:
    operands = {"a": ("f32", [1.0]), "b": ("f32", [-2.0])}
    assert compute("cvt.rn.f16x2.f32 %d, %a, %b;", "b32", **operands) == [0x3C00C000]
    assert compute("cvt.rn.bf16x2.f32 %d, %a, %b;", "b32", **operands) == [0x3F80C000]
    operands = {"a": ("f32", [1.999]), "b": ("f32", [-1.999])}
    assert compute("cvt.rz.bf16x2.f32 %d, %a, %b;", "b32", **operands) == [0x3FFFBFFF]


def test_floats_of_integers() -> None:
    tie = 2**24 + 1  # between two floats; the even one is below
    values: list[Value] = [tie, tie + 2, -tie, 0]
    expected = [2.0**24, 2.0**24 + 4, -(2.0**24), 0.0]
    assert compute("cvt.rn.f32.s32 %d, %a;", "f32", a=("s32", values)) == expected
    assert compute("cvt.rn.f32.u32 %d, %a;", "f32", a=("u32", [2**32 - 1])) == [2.0**32]
    assert compute("cvt.rn.f32.s64 %d, %a;", "f32", a=("s64", [-(2**62) - 1])) == [-(2.0**62)]
    assert compute("cvt.rn.f32.u64 %d, %a;", "f32", a=("u64", [2**64 - 1])) == [2.0**64]


@pytest.mark.parametrize(
    ("types", "source", "value", "result", "expected"),
    [
        ("s64.s32", "s32", -5, "s64", -5),
        ("u64.u32", "u32", 2**32 - 1, "u64", 2**32 - 1),
        ("s64.u32", "u32", 2**32 - 1, "s64", 2**32 - 1),
        ("u32.u64", "u64", 2**40 + 7, "u32", 7),
        ("u16.u32", "u32", 0x12345678, "u16", 0x5678),
        ("u32.u16", "u16", 0xFFFF, "u32", 0xFFFF),
        ("s32.s16", "s16", -2, "s32", -2),
        ("s32.s8", "b32", 0x1FF, "s32", -1),  # bits above the type do not count
        ("u32.u8", "b32", 0x1FF, "u32", 0xFF),
        ("s8.s32", "s32", 0x1FF, "s32", -1),  # extended to the register
        ("u8.u32", "u32", 0x1FF, "u32", 0xFF),
    ],
)
def test_integers_of_integers(
    types: str, source: str, value: int, result: str, expected: int
) -> None:
    assert compute(f"cvt.{types} %d, %a;", result, a=(source, [value])) == [expected]


def test_moves_and_vectors() -> None:
    assert compute("mov.b32 %d, %a;", "b32", a=("b32", [7])) == [7]
    assert compute("mov.b64 %d, -1;", "s64") == [-1]
    assert compute("mov.b32 %d, 0f3F800000;", "f32") == [1.0]
    operands = {"a": ("b16", [0x1234]), "b": ("b16", [0x5678])}
    assert compute("mov.b32 %d, {%a, %b};", "b32", **operands) == [0x56781234]
    operands = {"a": ("b32", [1]), "b": ("b32", [2])}
    assert compute("mov.b64 %d, {%a, %b};", "b64", **operands) == [2 << 32 | 1]
    operands = {"a": ("b64", [0x0123456789ABCDEF])}
    for part, expected in enumerate([0xCDEF, 0x89AB, 0x4567, 0x0123]):
        names = ["%w", "%x", "%y", "%z"]
        names[part] = "%d"
        text = ".reg .b16 %w, %x, %y, %z; mov.b64 {" + ", ".join(names) + "}, %a;"
        assert compute(text, "b16", **operands) == [expected]
    for halves, expected in (("%d, %x", 0x89ABCDEF), ("%x, %d", 0x01234567)):
        text = f".reg .b32 %x; mov.b64 {{{halves}}}, %a;"
        assert compute(text, "b32", **operands) == [expected]
    # A destination may be the source.
    text = "mov.b32 {%d, %x}, %a;"
    assert compute(f".reg .b16 %x; {text}", "b16", a=("b32", [0xABCD1234])) == [0x1234]


def test_unused_lanes_keep_their_values() -> None:
    out = Buffer("s32", [0] * 32)
    body = """
    .reg .pred %p;
    .reg .s32 %x;
    mov.u32 %x, 5;
    setp.lt.s32 %p, %lane, 3;
    @%p add.s32 %x, %lane, 100;
    @!%p sub.s32 %x, %x, %lane;
    mad.wide.u32 %offset64, %lane, 4, %out;
    st.global.s32 [%offset64], %x;
    """
    assert launch(kernel(body, ["out"]), out) == []
    assert out.values() == [100, 101, 102, *(5 - lane for lane in range(3, 32))]
