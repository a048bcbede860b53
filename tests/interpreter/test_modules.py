"""Texts of PTX: what is read, what is refused with its line, and what was executed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .machine import HEADER, Buffer, interpreter, kernel, launch, line_of


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("frobnicate.b32 %r, %r;", "the instruction is not known"),
        ("add.sat.s32 %r, %r, %r;", "the modifier .sat"),
        ("add.ftz.f32 %r, %r, %r;", "the modifier .ftz"),
        ("fma.rz.f32 %r, %r, %r, %r;", "without .rn it is not known"),
        ("add.f64 %w, %w, %w;", "its type is missing or not known"),
        ("add.s32 %r, %r;", "expected a comma"),
        ("add.s32 %r, %r, %r, %r;", "more operands than expected"),
        ("add.s32 %r, %r, %w;", "%w has 64 bits"),
        ("add.s32 %r, %r, %nowhere;", "the operand %nowhere"),
        ("add.s32 %r, %r, 12x;", "the number 12x"),
        ("ex2.f32 %r, %r;", "without .approx it is not known"),
        ("setp.hi.s32 %p, %r, %r;", "the comparison or its type is not known"),
        ("cvt.rni.f32.f32 %r, %r;", "the types are not known"),
        ("cvt.f16.f32 %h, %r;", "without .rz it is not known"),
        ("ld.global.v8.b32 %r, [%w];", "the modifier .v8"),
        ("ld.global.v4.b64 {%w, %w, %w, %w}, [%w];", "a vector of this size"),
        ("ld.global.v2.b32 {%r}, [%w];", "the number of its registers"),
        ("ld.global.L2::cache_hint.b32 %r, [%w], %w;", "the modifier .L2::cache_hint"),
        ("ld.const.b32 %r, [%w];", "the modifier .const"),
        ("st.param.b32 [%w], %r;", "kernels cannot write parameters"),
        ("cp.async.cg.shared.global [%r], [%w], 8;", "its size"),
        ("cp.async.bulk.commit_group;", "the modifier .bulk"),
        ("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 %r, %r, %r, %r;", "without .m16n8k8"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r}, [%r];", "the number of its registers"),
        ("bar.sync 1;", "a barrier other than 0"),
        ("shfl.sync.bfly.b32 %r, %r, 1, 31;", "expected a comma"),
        ("bra NOWHERE;", "the label NOWHERE does not exist"),
        ("call.uni foo;", "the instruction is not known"),
        (".align 4;", "the directive .align is not known"),
    ],
)
def test_what_is_not_known_stops_with_its_line(instruction: str, reason: str) -> None:
    declared = ".reg .b32 %r; .reg .b64 %w; .reg .b16 %h; .reg .pred %p;"
    text = kernel(f"{declared}\n{instruction}\n")
    with pytest.raises(interpreter().Refusal) as refusal:
        launch(text)
    message = str(refusal.value)
    assert message.startswith(f"test.ptx:{line_of(text, instruction)}: ")
    assert reason in message
    assert interpreter().decode_all() == [message]


def test_lines_are_counted_through_comments_and_statements_of_several_lines() -> None:
    body = """
    /* A comment
       of two lines */ // and of one
    .reg .b32 %r;
    mov.u32
        %r,
        1;
    {
        .reg .b32 %inner; mov.b32 %inner, %r;
    }
    mov.u32 %inner, 1;
    """
    text = kernel(body)
    with pytest.raises(interpreter().Refusal, match="%inner") as refusal:
        launch(text)
    assert f"test.ptx:{line_of(text, '    mov.u32 %inner, 1;')}: " in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no PTX",
        f"{HEADER}.visible .entry test() {{ ret;",
        f"{HEADER}.entry test(.param .x y) {{}}",
    ],
)
def test_texts_that_are_no_modules(text: str) -> None:
    with pytest.raises(interpreter().Refusal, match=r"broken\.ptx"):
        interpreter().load("/folder/broken.ptx", text)


def test_kernels_of_a_module() -> None:
    text = (
        f"{HEADER}.global .align 1 .b8 name[3] = {{65, 66, 0}};\n"
        ".visible .entry first(.param .u64 .ptr .global .align 16 a) { ret; }\n"
        ".entry second(.param .align 8 .b8 s[24], .param .u8 b, .param .f32 c)\n"
        ".maxntid 64, 2\n{ ret; }\n"
        ".section .debug_info { .b32 5\n }\n"
    )
    machine = interpreter()
    assert machine.load("/folder/two.ptx", text) == ["first", "second"]
    assert {"first", "second"} <= {k.name for k in machine.kernels() if k.file == "two.ptx"}
    arguments = [bytes(24), bytes(1), bytes(4)]
    most = machine.settings()["shared_bytes_per_block"]
    machine.launch("second", (1, 1, 1), (128, 1, 1), most, arguments)
    refused: list[tuple[tuple[Any, ...], str]] = [
        (("second", (1, 1, 1), (129, 1, 1), 0, arguments), ".maxntid allows 128"),
        (("second", (1, 1, 1), (1, 1, 1), 0, arguments[:2]), "got 2 arguments, expected 3"),
        (("second", (1, 1, 1), (1, 1, 1), 0, [bytes(24), bytes(2), bytes(4)]), "argument 1 has 2"),
        (("second", (0, 1, 1), (1, 1, 1), 0, arguments), "a grid of (0, 1, 1)"),
        (("second", (1, 65536, 1), (1, 1, 1), 0, arguments), "a grid of (1, 65536, 1)"),
        (("second", (1, 1, 65536), (1, 1, 1), 0, arguments), "a grid of (1, 1, 65536)"),
        (("second", (1, 1, 1), (1, 0, 1), 0, arguments), "a block of (1, 0, 1)"),
        (("second", (1, 1, 1), (1, 1, 65), 0, arguments), "a block of (1, 1, 65)"),
        (("first", (1, 1, 1), (1025, 1, 1), 0, [bytes(8)]), "a block of (1025, 1, 1)"),
        (("first", (1, 1, 1), (1, 1, 1), most + 1, [bytes(8)]), f"{most + 1} bytes of shared"),
        (("third", (1, 1, 1), (1, 1, 1), 0, []), "there is no kernel third"),
    ]
    for call, reason in refused:
        with pytest.raises(machine.Refusal, match=re.escape(reason)):
            machine.launch(*call)
    machine.unload("first")
    with pytest.raises(machine.Refusal, match="no kernel first"):
        machine.launch("first", (1, 1, 1), (1, 1, 1), 0, [bytes(8)])
    machine.unload("second")


def test_required_block() -> None:
    text = kernel("", directives=".reqntid 64")
    assert launch(text, threads=64) == []
    with pytest.raises(interpreter().Refusal, match=r"\.reqntid is \(64, 1, 1\)"):
        launch(text, threads=32)


def test_a_kernel_replaces_one_of_its_name() -> None:
    for value in (1, 2):
        out = Buffer("u32", [0])
        body = f".reg .b32 %x; mov.u32 %x, {value}; st.global.u32 [%out], %x;"
        assert launch(kernel(body, ["out"]), out, threads=1) == []
        assert out.values() == [value]


def test_registers_share_rows_only_if_they_are_not_needed_together() -> None:
    """Values that live through a loop, through branches, and through guarded writes."""
    count = 40
    start = "".join(f"add.u32 %v{i}, %lane, {i};" for i in range(count))
    shuffled = "".join(f"mul.lo.u32 %t{i}, %v{i}, 3; add.u32 %s, %s, %t{i};" for i in range(count))
    body = f"""
    .reg .b32 %v<{count}>, %t<{count}>, %s, %i, %late;
    .reg .pred %p, %q;
    {start}
    mov.u32 %s, 0;
    mov.u32 %i, 0;
    mov.u32 %late, 1000;
    LOOP:
    {shuffled}
    setp.gt.u32 %q, %lane, 15;
    @%q mov.u32 %late, %i;
    @%q bra SKIP;
    add.u32 %v0, %v0, 1;
    SKIP:
    add.u32 %i, %i, 1;
    setp.lt.u32 %p, %i, 3;
    @%p bra LOOP;
    add.u32 %s, %s, %late;
    mad.wide.u32 %offset64, %lane, 4, %out;
    st.global.u32 [%offset64], %s;
    """
    out = Buffer("u32", [0] * 32)
    assert launch(kernel(body, ["out"]), out) == []

    def expected(lane: int) -> int:
        v, total, late = [lane + i for i in range(count)], 0, 1000
        for i in range(3):
            total += 3 * sum(v)
            if lane > 15:
                late = i
            else:
                v[0] += 1
        return total + late

    assert out.values() == [expected(lane) for lane in range(32)]


def test_source_lines_and_what_was_not_executed() -> None:
    body = """
    .reg .b32 %x;
    .reg .pred %p;
    .loc 1 10 5
    setp.gt.u32 %p, %lane, 40;
    @%p bra FAR;
    .loc 1 12 3
    ld.global.b32 %x, [%zero64];
    ret;
    FAR:
    .loc 2 7 1
    add.u32 %x, %x, 1;
    """.replace("[%zero64]", "[%in]")
    text = kernel(body, ["in"]).replace(HEADER, f'{HEADER}.file 1 "/some/folder/kernel.cu"\n')
    machine = interpreter()
    (found,) = launch(text, Buffer("u32", [0]), permit=False)
    assert (found.source_file, found.source_line) == ("kernel.cu", 12)
    assert "(kernel.cu:12)" in str(found)
    missing = machine.unexecuted("test")
    assert [(m.instruction, m.source_file, m.source_line) for m in missing] == [
        ("bra", "kernel.cu", 10),
        ("add.u32", "", 7),
        ("ret", "", 7),
        ("end of the kernel", "", 7),
    ]
    assert missing[1].line == line_of(text, "add.u32 %x, %x, 1;")
    (summary,) = [k for k in machine.kernels() if k.name == "test"]
    assert summary.launches == 1
    assert summary.instructions == summary.executed_instructions + 4
    with pytest.raises(machine.Refusal, match="no kernel nothing"):
        machine.unexecuted("nothing")


def test_settings() -> None:
    machine = interpreter()
    before = machine.settings()
    machine.set(copies="early", seed=7, check_absent_copies=True)
    assert machine.settings() == before | {
        "copies": "early",
        "seed": 7,
        "check_absent_copies": True,
    }
    with pytest.raises(ValueError, match="copies: got 'soon', expected one of late, early, random"):
        machine.set(copies="soon")
    machine.set(**before)
    assert machine.settings() == before
