"""cp.async: when copies land, groups, sizes, and what is found wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from .machine import SHARED, Buffer, Value, interpreter, kernel, kinds, launch, line_of


def copying(body: str) -> str:
    """A kernel with a lane's 16 bytes of shared memory in %to, of %in in %from, and its %out64."""
    return kernel(
        f"""
    .reg .b32 %to, %x, %y, %size;
    .reg .b64 %from, %out64;
    .reg .pred %p;
    mad.lo.u32 %to, %lane, 16, memory;
    mad.wide.u32 %from, %lane, 16, %in;
    mad.wide.u32 %out64, %lane, 4, %out;
    {body}
    """,
        ["in", "out"],
        shared=SHARED,
    )


def run(
    body: str, values: int = 256, shared: int = 1024, threads: int = 32
) -> tuple[list[Value], list[Any]]:
    """Return the output of a kernel of `copying`, and the findings; the input counts from 1."""
    source, out = Buffer("u32", range(1, values + 1)), Buffer("u32", [0] * threads)
    found = launch(copying(body), source, out, shared=shared, threads=threads)
    return out.values(), found


COPY = "cp.async.cg.shared.global [%to], [%from], 16; "
STORE = "ld.shared.b32 %x, [%to]; st.global.b32 [%out64], %x;"


@pytest.mark.parametrize("copies", ["late", "early", "random"])
def test_copies_that_are_waited_for(copies: str) -> None:
    interpreter().set(copies=copies)
    for wait in ("cp.async.commit_group; cp.async.wait_group 0; ", "cp.async.wait_all; "):
        out, found = run(COPY + wait + STORE)
        assert found == []
        assert out == [1 + 4 * lane for lane in range(32)]


@pytest.mark.parametrize(
    "wait",
    ["", "cp.async.commit_group; cp.async.wait_group 1; ", "cp.async.wait_group 0; "],
    ids=["none", "one group may remain", "not committed"],
)
def test_copies_that_are_not_waited_for(wait: str) -> None:
    machine = interpreter()
    machine.set(copies="late")
    out, found = run(COPY + wait + STORE)
    assert kinds(found) == {"shared read under a copy in flight", "copy in flight at exit"}
    assert out == [2**32 - 1] * 32
    machine.set(copies="early")
    out, found = run(COPY + wait + STORE)
    assert kinds(found) == {"shared read under a copy in flight", "copy in flight at exit"}
    assert out == [1 + 4 * lane for lane in range(32)]
    machine.set(copies="random")
    out, found = run(COPY + wait + STORE)
    assert len({value == 2**32 - 1 for value in out}) == 2


def test_the_youngest_groups_may_remain() -> None:
    body = """
    cp.async.ca.shared.global [%to], [%from], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%to+4], [%from+4], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%to+8], [%from+8], 8;
    cp.async.commit_group;
    cp.async.wait_group 2;
    ld.shared.b32 %x, [%to];
    cp.async.wait_group 1;
    ld.shared.b32 %y, [%to+4];
    add.u32 %x, %x, %y;
    cp.async.wait_group 0;
    ld.shared.b32 %y, [%to+12];
    add.u32 %x, %x, %y;
    st.global.b32 [%out64], %x;
    """
    out, found = run(body)
    assert found == []
    assert out == [3 * 4 * lane + 1 + 2 + 4 for lane in range(32)]
    for remaining in (2, 1, 0):
        fewer = body.replace(f"wait_group {remaining};", f"wait_group {remaining + 1};")
        assert "shared read under a copy in flight" in kinds(run(fewer)[1])


def test_copies_of_a_loop() -> None:
    """Two stages in flight for many rounds; each lane sums what it copied."""
    body = """
    mov.u32 %x, 0;
    mov.u32 %size, 0;
    cp.async.ca.shared.global [%to], [%from], 4;
    cp.async.commit_group;
    NEXT:
    cp.async.ca.shared.global [%to+4], [%from+4], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %y, [%to];
    add.u32 %x, %x, %y;
    cp.async.ca.shared.global [%to], [%from], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %y, [%to+4];
    add.u32 %x, %x, %y;
    add.u32 %size, %size, 1;
    setp.lt.u32 %p, %size, 100;
    @%p bra NEXT;
    cp.async.wait_all;
    st.global.b32 [%out64], %x;
    """
    out, found = run(body)
    assert found == []
    assert out == [100 * (8 * lane + 3) for lane in range(32)]


def test_a_copy_lands_once() -> None:
    """After so many that the interpreter forgets those that have landed, and if it was early."""
    body = "".join(
        f"cp.async.ca.shared.global [%to+{4 * i}], [%from+{4 * i}], 4; cp.async.commit_group;"
        for i in range(66)
    )
    body += """
    cp.async.wait_group 1;
    mov.u32 %x, 7;
    st.shared.b32 [%to+256], %x;
    cp.async.wait_group 0;
    ld.shared.b32 %x, [%to+256];
    ld.shared.b32 %y, [%to+260];
    add.u32 %x, %x, %y;
    st.global.b32 [%out64], %x;
    """
    assert run(body, threads=1) == ([7 + 66], [])
    interpreter().set(copies="early")
    change = "cp.async.commit_group; mov.u32 %x, 7; st.global.b32 [%from], %x; "
    out, found = run(COPY + change + "cp.async.wait_group 0; " + STORE)
    assert (out, found) == ([1 + 4 * lane for lane in range(32)], [])


def test_copies_in_flight_end_with_their_block() -> None:
    body = """
    mov.u32 %x, %ctaid.x;
    setp.eq.u32 %p, %x, 0;
    @%p cp.async.cg.shared.global [%to], [%from], 16;
    @!%p st.shared.b32 [%to], %x;
    """
    source, out = Buffer("u32", range(4)), Buffer("u32", [0])
    (found,) = launch(copying(body), source, out, shared=16, threads=1, blocks=2)
    assert (found.kind, found.count) == ("copy in flight at exit", 1)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (4, 2), (12, 2 + 3 + 4), (16, 2 + 3 + 4 + 5)]
)
@pytest.mark.parametrize("copies", ["late", "early"])
def test_the_rest_of_a_short_source_is_zeros(size: int, expected: int, copies: str) -> None:
    interpreter().set(copies=copies)
    body = f"""
    mov.u32 %size, {size};
    st.shared.v4.b32 [%to], {{%lane, %lane, %lane, %lane}};
    cp.async.cg.shared.global [%to], [%from], 16, %size;
    cp.async.wait_all;
    mov.u32 %x, 0;
    """
    for i in range(4):
        body += f"ld.shared.b32 %y, [%to+{4 * i}]; add.u32 %x, %x, %y;"
    machine = interpreter()
    machine.take_counters()
    source, out = Buffer("u32", [*range(2, 130)]), Buffer("u32", [0] * 32)
    assert launch(copying(body + "st.global.b32 [%out64], %x;"), source, out, shared=512) == []
    words = size // 4
    assert out.values()[0] == expected
    assert out.values()[31] == sum(range(2 + 4 * 31, 2 + 4 * 31 + words))
    counters = machine.take_counters()
    assert counters["copies"] == 32
    assert counters["global_bytes_read"] == 32 * size
    assert counters["global_sectors_read"] == (16 if size else 0)
    assert counters["copy_wavefronts"] == counters["copy_wavefronts_ideal"] == 4


def test_bank_conflicts_of_copies() -> None:
    machine = interpreter()
    machine.take_counters()
    _, found = run("mad.lo.u32 %to, %lane, 128, memory;" + COPY + "cp.async.wait_all;", shared=4096)
    assert found == []
    counters = machine.take_counters()
    assert (counters["copy_wavefronts"], counters["copy_wavefronts_ideal"]) == (32, 4)


def test_addresses_of_copies() -> None:
    wait = "cp.async.wait_all; "
    text = copying(COPY + wait)
    _, found = run(COPY + wait, values=120)
    assert kinds(found) == {"global read out of bounds"}
    assert (found[0].count, found[0].line) == (2, line_of(text, "cp.async.cg"))
    _, found = run(COPY + wait, shared=500)
    assert kinds(found) == {"shared access out of bounds"}
    _, found = run("add.s64 %from, %from, 4;" + COPY + wait)
    assert kinds(found) == {"misaligned global access"}
    _, found = run("add.s32 %to, %to, 4;" + COPY + wait)
    assert kinds(found) == {"misaligned shared access"}
    # Only what is read must be there.
    source, out = Buffer("u32", range(125)), Buffer("u32", [0] * 32)
    short = copying("cp.async.cg.shared.global [%to], [%from], 16, 4; cp.async.wait_all;")
    assert launch(short, source, out, shared=512) == []


def test_copies_that_read_nothing() -> None:
    """Their address counts only if that is asked for."""
    absent = "cp.async.cg.shared.global [%to], [%from], 16, 0; cp.async.wait_all;"
    assert run("mov.u64 %from, 0;" + absent)[1] == []
    interpreter().set(check_absent_copies=True)
    assert kinds(run("mov.u64 %from, 0;" + absent)[1]) == {
        "cp.async of source size 0 from outside permitted memory"
    }
    assert run(absent)[1] == []
    _, found = run("add.s64 %from, %from, 4;" + absent)
    assert kinds(found) == {"cp.async of source size 0 from a misaligned address"}


def test_source_size_above_the_size() -> None:
    _, found = run("cp.async.cg.shared.global [%to], [%from], 16, 17; cp.async.wait_all;")
    assert kinds(found) == {"cp.async with a source size above its size"}


@pytest.mark.parametrize(
    ("access", "kind"),
    [
        ("ld.shared.b16 %h, [%to+14];", "shared read under a copy in flight"),
        ("st.shared.b32 [%to+12], %x;", "shared write under a copy in flight"),
        (COPY, "shared write under a copy in flight"),
    ],
)
def test_accesses_under_a_copy(access: str, kind: str) -> None:
    body = f".reg .b16 %h; {COPY} {access} cp.async.wait_all;"
    assert kind in kinds(run(body)[1])
    ordered = f".reg .b16 %h; {COPY} cp.async.wait_all; {access} cp.async.wait_all;"
    assert run(ordered)[1] == []


def test_other_lanes_see_copies_after_a_barrier() -> None:
    move = "xor.b32 %to, %to, 16; "
    wait = "cp.async.wait_all; "
    assert kinds(run(COPY + wait + move + STORE)[1]) == {
        "race: shared read after another thread's write"
    }
    barrier = "bar.warp.sync -1; "
    out, found = run(COPY + wait + barrier + move + STORE)
    assert found == []
    assert out == [1 + 4 * (lane ^ 1) for lane in range(32)]
    # A barrier in front of the wait is none.
    assert run(COPY + barrier + wait + move + STORE)[1] != []


def test_copies_of_diverged_lanes_have_groups_of_their_own() -> None:
    body = """
    setp.lt.u32 %p, %lane, 8;
    @!%p bra OTHERS;
    cp.async.cg.shared.global [%to], [%from], 16;
    cp.async.commit_group;
    OTHERS:
    cp.async.cg.shared.global [%to+512], [%from+512], 16;
    cp.async.commit_group;
    cp.async.wait_group 1;
    @%p ld.shared.b32 %x, [%to];
    cp.async.wait_group 0;
    @!%p ld.shared.b32 %x, [%to+512];
    st.global.b32 [%out64], %x;
    """
    out, found = run(body)
    assert found == []
    assert out == [1 + 4 * lane + (128 if lane >= 8 else 0) for lane in range(32)]
