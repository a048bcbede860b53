"""The lines of a kernel that can be changed without any effect."""

from __future__ import annotations

import pytest

from .ptx_flow import Flow

ANY_BARRIER = r"bar\."


def flow(text: str, *unexecuted: int) -> Flow:
    lines = dict(enumerate(text.strip().split("\n"), 1))
    return Flow(
        {number: line.strip() for number, line in lines.items()}, set(lines) - {*unexecuted}
    )


LOOP = """
mov.u32 %r1, 0;
mov.u32 %r2, 5;
setp.eq.s32 %p1, %r1, 0;
@%p1 bra LAST;
LOOP:
add.s32 %r1, %r1, %r2;
setp.lt.s32 %p2, %r1, 9;
@%p2 bra LOOP;
LAST:
st.global.u32 [%rd1], %r1;
ret;
"""


def test_every_result_of_a_loop_is_read() -> None:
    assert flow(LOOP).unread_results() == set()


def test_results_that_only_lines_read_which_never_run() -> None:
    # The branch in line 4 was always taken: nobody came to line 6, the first one after it.
    assert flow(LOOP, 6, 7, 8).unread_results() == {2}
    # It never was: what line 1 writes is read by line 6 all the same.
    assert flow(LOOP, 4).unread_results() == set()


def test_a_result_that_is_written_again_before_it_is_read() -> None:
    twice = "mov.u32 %r1, 0;\n{}mov.u32 %r1, 1;\nst.shared.u32 [%r2], %r1;\nret;"
    assert flow(twice.format("")).unread_results() == {1}
    assert flow(twice.format("@%p1 ")).unread_results() == set()


@pytest.mark.parametrize(
    ("line", "is_unread"),
    [
        ("mov.b32 %r1, {%rs1, %rs2};", True),
        ("mov.b32 {%rs1, %rs2}, %r1;", True),
        ("{ cvt.rn.bf16x2.f32 %r1, %f1, %f2;}", True),
        ("ld.shared.u32 %r1, [%r2];", False),  # its address may be wrong
        ("shfl.sync.bfly.b32 %r1|%p1, %r2, %r3, %r4, %r5;", False),
        ("st.shared.u32 [%r1], %r2;", False),
        ("bar.warp.sync -1;", False),
    ],
)
def test_lines_that_only_give_a_result(line: str, is_unread: bool) -> None:
    assert flow(f"{line}\nret;").unread_results() == ({1} if is_unread else set())


def test_accesses_around_a_barrier() -> None:
    text = """
    st.shared.u32 [%r1], %r2;
    bar.warp.sync -1;
    ld.shared.u32 %r3, [%r1];
    LOOP:
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1,%r2,%r3,%r4}, [%r5];
    @%p1 bra LOOP;
    cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;
    ret;
    """
    kernel = flow(text)
    assert kernel.accesses(2, kernel.before, ANY_BARRIER) == {"write"}
    assert kernel.accesses(2, kernel.after, ANY_BARRIER) == {"read"}
    assert kernel.accesses(5, kernel.before, ANY_BARRIER) == {"read"}
    assert kernel.accesses(5, kernel.after, ANY_BARRIER) == {"read", "write"}
    # Nobody went beyond the loop.
    kernel = flow(text, 8, 9)
    assert kernel.accesses(5, kernel.after, ANY_BARRIER) == {"read"}
