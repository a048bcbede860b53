"""Integer, logic and shift instructions against values computed by hand."""

from __future__ import annotations

import pytest

from .machine import Value, compute, interpreter, kernel, kinds, launch, line_of

LEAST_32, LEAST_64 = -(2**31), -(2**63)


@pytest.mark.parametrize(
    ("instruction", "type", "a", "b", "expected"),
    [
        ("add.s32", "s32", [1, 2**31 - 1], [2, 1], [3, LEAST_32]),
        ("add.u16", "u16", [65535], [2], [1]),
        ("add.s64", "s64", [2**63 - 1, 2**32], [1, 1], [LEAST_64, 2**32 + 1]),
        ("sub.s32", "s32", [0, LEAST_32], [1, 1], [-1, 2**31 - 1]),
        ("mul.lo.s32", "s32", [-3, 65536], [5, 65536], [-15, 0]),
        ("mul.lo.u16", "u16", [65535, 256], [65535, 256], [1, 0]),
        ("mul.lo.s64", "s64", [-(2**33)], [2], [-(2**34)]),
        ("mul.hi.s32", "s32", [-1, LEAST_32, 2**30], [1, LEAST_32, 4], [-1, 2**30, 1]),
        ("mul.hi.u32", "u32", [2**32 - 1], [2**32 - 1], [2**32 - 2]),
        ("mul.hi.u64", "u64", [2**64 - 1], [2**64 - 1], [2**64 - 2]),
        ("div.s32", "s32", [7, -7, 7, LEAST_32], [2, 2, -2, -1], [3, -3, -3, LEAST_32]),
        ("div.u32", "u32", [2**32 - 1, 6], [2, 7], [2**31 - 1, 0]),
        ("div.s64", "s64", [-(2**40), LEAST_64], [3, -1], [-366503875925, LEAST_64]),
        ("rem.s32", "s32", [7, -7, 7, LEAST_32], [2, 2, -2, -1], [1, -1, 1, 0]),
        ("rem.u32", "u32", [2**32 - 1], [10], [5]),
        ("min.s32", "s32", [-1, 5], [1, 4], [-1, 4]),
        ("min.u32", "u32", [2**32 - 1], [1], [1]),
        ("max.s32", "s32", [-1, 5], [1, 4], [1, 5]),
        ("max.u32", "u32", [2**32 - 1], [1], [2**32 - 1]),
        ("and.b32", "b32", [0xFF00FF00], [0x0FF00FF0], [0x0F000F00]),
        ("or.b16", "b16", [0xF0F0], [0x0F00], [0xFFF0]),
        ("xor.b64", "b64", [2**64 - 1], [2**63], [2**63 - 1]),
    ],
)
def test_of_two(
    instruction: str, type: str, a: list[Value], b: list[Value], expected: list[Value]
) -> None:
    assert compute(f"{instruction} %d, %a, %b;", type, a=(type, a), b=(type, b)) == expected


@pytest.mark.parametrize(
    ("instruction", "type", "a", "expected"),
    [
        ("neg.s32", "s32", [1, LEAST_32, 0], [-1, LEAST_32, 0]),
        ("abs.s32", "s32", [-5, 5, LEAST_32], [5, 5, LEAST_32]),
        ("abs.s64", "s64", [-(2**40)], [2**40]),
        ("not.b32", "b32", [0, 0xFFFF0000], [0xFFFFFFFF, 0xFFFF]),
        ("not.b16", "b16", [1], [0xFFFE]),
    ],
)
def test_of_one(instruction: str, type: str, a: list[Value], expected: list[Value]) -> None:
    assert compute(f"{instruction} %d, %a;", type, a=(type, a)) == expected


@pytest.mark.parametrize(
    ("instruction", "type", "a", "amounts", "expected"),
    [
        ("shl.b32", "b32", [1, 1, 1, 3], [31, 32, 2**32 - 1, 31], [2**31, 0, 0, 2**31]),
        ("shl.b16", "b16", [1, 1, 0x8001], [15, 16, 1], [0x8000, 0, 2]),
        ("shl.b64", "b64", [1, 1], [63, 64], [2**63, 0]),
        ("shr.u32", "u32", [2**31, 2**31, 2**31], [31, 32, 200], [1, 0, 0]),
        ("shr.s32", "s32", [LEAST_32, -5, 5], [100, 1, 1], [-1, -3, 2]),
        ("shr.s64", "s64", [LEAST_64, LEAST_64], [62, 64], [-2, -1]),
        ("shr.u64", "u64", [2**63, 2**63], [63, 64], [1, 0]),
        ("shr.u16", "u16", [0x8000, 0x8000], [15, 16], [1, 0]),
    ],
)
def test_shifts(
    instruction: str, type: str, a: list[Value], amounts: list[Value], expected: list[Value]
) -> None:
    computed = compute(f"{instruction} %d, %a, %b;", type, a=(type, a), b=("u32", amounts))
    assert computed == expected


@pytest.mark.parametrize(
    ("instruction", "amounts", "expected"),
    [
        # Upper word 0x89abcdef over the lower one, 0x01234567.
        ("shf.l.wrap.b32", [0, 4, 32, 36], [0x89ABCDEF, 0x9ABCDEF0, 0x89ABCDEF, 0x9ABCDEF0]),
        ("shf.l.clamp.b32", [4, 32, 36], [0x9ABCDEF0, 0x01234567, 0x01234567]),
        ("shf.r.wrap.b32", [0, 4, 32], [0x01234567, 0xF0123456, 0x01234567]),
        ("shf.r.clamp.b32", [4, 32, 99], [0xF0123456, 0x89ABCDEF, 0x89ABCDEF]),
    ],
)
def test_funnel_shifts(instruction: str, amounts: list[Value], expected: list[Value]) -> None:
    computed = compute(f"{instruction} %d, 0x01234567, 0x89abcdef, %c;", "b32", c=("u32", amounts))
    assert computed == expected


def test_wide_products() -> None:
    a, b = [-1, 2**31 - 1], [2**31 - 1, 2**31 - 1]
    wide = compute("mul.wide.s32 %d, %a, %b;", "s64", a=("s32", a), b=("s32", b))
    assert wide == [-(2**31) + 1, (2**31 - 1) ** 2]
    wide = compute("mul.wide.u16 %d, %a, %b;", "u32", a=("u16", [65535]), b=("u16", [65535]))
    assert wide == [65535**2]
    operands = {"a": ("s32", [-2]), "b": ("s32", [3]), "c": ("s64", [2**40])}
    assert compute("mad.wide.s32 %d, %a, %b, %c;", "s64", **operands) == [2**40 - 6]
    operands = {"a": ("s16", [-2]), "b": ("s16", [-3]), "c": ("s32", [-10])}
    assert compute("mul.wide.s16 %d, %a, %b;", "s32", **operands) == [6]
    assert compute("mad.wide.s16 %d, %a, %b, %c;", "s32", **operands) == [-4]
    operands = {"a": ("u32", [2**32 - 1]), "b": ("u32", [2]), "c": ("u64", [2])}
    assert compute("mad.wide.u32 %d, %a, %b, %c;", "u64", **operands) == [2**33]
    operands = {"a": ("s32", [65536]), "b": ("s32", [65536]), "c": ("s32", [-7])}
    assert compute("mad.lo.s32 %d, %a, %b, %c;", "s32", **operands) == [-7]


def test_counting() -> None:
    assert compute("popc.b32 %d, %a;", "u32", a=("b32", [0, 0xF0000001])) == [0, 5]
    assert compute("clz.b32 %d, %a;", "u32", a=("b32", [0, 1, 2**31])) == [32, 31, 0]
    assert compute("clz.b64 %d, %a;", "u32", a=("b64", [0, 1])) == [64, 63]


def test_fields() -> None:
    def extract(type: str, position: int, length: int) -> list[Value]:
        text = f"bfe.{type} %d, %a, {position}, {length};"
        return compute(text, "b32", a=("b32", [0x80F0F00F]))

    assert extract("u32", 12, 8) == [0x0F]
    assert extract("s32", 12, 8) == [0x0F]
    assert extract("s32", 12, 4) == [0xFFFFFFFF]
    assert extract("u32", 0, 0) == [0]
    assert extract("s32", 28, 8) == [0xFFFFFFF8]  # beyond the top: copies of the sign
    assert extract("u32", 28, 8) == [8]
    assert extract("u32", 40, 4) == [0]
    assert extract("u32", 0, 32) == [0x80F0F00F]
    assert extract("u32", 4, 32) == [0x080F0F00]

    def insert(position: int, length: int) -> list[Value]:
        text = f"bfi.b32 %d, %a, %b, {position}, {length};"
        return compute(text, "b32", a=("b32", [0x12345678]), b=("b32", [0xFFFFFFFF]))

    assert insert(8, 8) == [0xFFFF78FF]
    assert insert(28, 8) == [0x8FFFFFFF]
    assert insert(0, 0) == [0xFFFFFFFF]
    assert insert(0, 32) == [0x12345678]
    assert insert(40, 8) == [0xFFFFFFFF]


def test_permutation_of_bytes() -> None:
    # Bytes 0 to 3 are 0x44, 0x33, 0x22, 0x91 and 4 to 7 are 0x88, 0x77, 0x66, 0x55.
    selectors = [0x3210, 0x7654, 0x0167, 0xB888, 0xCCCC]
    computed = compute("prmt.b32 %d, 0x91223344, 0x55667788, %c;", "b32", c=("b32", selectors))
    assert computed == [0x91223344, 0x55667788, 0x44336655, 0xFF000000, 0xFFFFFFFF]


def test_logic_of_three() -> None:
    operands = {"a": ("b32", [0xF0F0F0F0]), "b": ("b32", [0xCCCCCCCC]), "c": ("b32", [0xAAAAAAAA])}
    for table in (0x00, 0x80, 0xE8, 0x96, 0xFE, 0x1D):
        text = f"lop3.b32 %d, %a, %b, %c, {table};"
        # These operands make each byte of the result the table.
        assert compute(text, "b32", **operands) == [table * 0x01010101]


def test_division_by_zero_is_found_where_a_lane_divides() -> None:
    body = """
    .reg .pred %p;
    .reg .s32 %x;
    setp.ge.s32 %p, %lane, 1;
    @%p div.s32 %x, 5, %lane;
    div.s32 %x, 6, %lane;
    """
    text = kernel(body)
    (found,) = launch(text, threads=4)
    assert kinds([found]) == {"integer division by zero"}
    assert found.line == line_of(text, "div.s32 %x, 6")
    assert found.count == 1
    assert interpreter().take_findings() == []


def test_a_part_that_nobody_wants_is_left_out() -> None:
    text = "{ .reg .b16 %h; mov.b32 {_, %h}, %a; mov.b32 %d, {%h, %h}; }"
    assert compute(text, "b32", a=("b32", [0x12345678])) == [0x12341234]
