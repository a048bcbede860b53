"""Branches, barriers, what lanes tell each other, and the order in which they run."""

from __future__ import annotations

from typing import Any

import pytest

from .machine import Buffer, Value, interpreter, kernel, kinds, launch, line_of


def values(body: str, threads: int = 32, shared: int = 0) -> tuple[list[Value], list[Any]]:
    """Return the value that each thread leaves in %d, and the findings."""
    text = module(body)
    out = Buffer("u32", [0] * threads)
    found = launch(text, out, threads=threads, shared=shared)
    return out.values(), found


def module(body: str) -> str:
    return kernel(
        f"""
    .reg .b32 %d, %x, %y, %i;
    .reg .pred %p, %q;
    mov.u32 %d, 0;
    {body}
    mad.wide.u32 %offset64, %lane, 4, %out;
    st.global.u32 [%offset64], %d;
    """,
        ["out"],
        shared=".extern .shared .align 128 .b8 memory[];",
    )


ORDERS = ["forward", "reverse", "random"]


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_take_different_branches_and_meet_again(order: str) -> None:
    interpreter().set(lane_order=order)
    body = """
    and.b32 %x, %lane, 1;
    setp.eq.u32 %p, %x, 1;
    @%p bra ODD;
    add.u32 %d, %lane, 100;
    bra MEET;
    ODD:
    add.u32 %d, %lane, 200;
    MEET:
    shfl.sync.bfly.b32 %x, %d, 1, 31, -1;
    add.u32 %d, %d, %x;
    """
    computed, found = values(body)
    assert found == []
    assert computed == [2 * (lane // 2 * 2) + 301 for lane in range(32)]


def test_a_register_that_a_guard_leaves_keeps_its_value_around_a_loop() -> None:
    """Its row may not be given to %y, which the loop needs before it."""
    body = """
    .reg .b32 %kept;
    mov.u32 %i, 0;
    AGAIN:
    add.u32 %y, %i, 100;
    add.u32 %d, %d, %y;
    setp.eq.u32 %p, %i, 0;
    @%p mov.u32 %kept, 5;
    add.u32 %d, %d, %kept;
    add.u32 %i, %i, 1;
    setp.lt.u32 %p, %i, 2;
    @%p bra AGAIN;
    """
    assert values(body) == ([100 + 5 + 101 + 5] * 32, [])


@pytest.mark.parametrize("order", ORDERS)
def test_loops_of_different_lengths(order: str) -> None:
    interpreter().set(lane_order=order)
    body = """
    mov.u32 %i, 0;
    LOOP:
    add.u32 %i, %i, 1;
    add.u32 %d, %d, %i;
    setp.le.u32 %p, %i, %lane;
    @%p bra.uni LOOP;
    """
    computed, found = values(body)
    assert found == []
    assert computed == [(lane + 1) * (lane + 2) // 2 for lane in range(32)]


def test_lanes_that_exit() -> None:
    body = """
    setp.ge.u32 %p, %lane, 5;
    @%p exit;
    bar.warp.sync -1;
    mov.u32 %d, 7;
    """
    assert values(body) == ([7] * 5 + [0] * 27, [])


def test_a_block_whose_last_warp_is_not_full() -> None:
    computed, found = values("bar.sync 0; add.u32 %d, %lane, 1;", threads=40)
    assert found == []
    assert computed == list(range(1, 41))


def test_indices_of_threads_and_blocks() -> None:
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"]
    names += ["%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z"]
    names += ["%laneid", "%warpid"]
    # The last thread of the last block writes all of them.
    lines = "".join(
        f"mov.u32 %x, {name}; @%p st.global.u32 [%out+{4 * i}], %x;" for i, name in enumerate(names)
    )
    body = f"""
    .reg .b32 %x, %s;
    .reg .pred %p;
    mov.u32 %s, 0;
    {"".join(f"mov.u32 %x, {name}; add.u32 %s, %s, %x;" for name in names[:6])}
    setp.eq.u32 %p, %s, 12;
    {lines}
    """
    out = Buffer("u32", [0] * len(names))
    machine = interpreter()
    machine.load("test.ptx", kernel(body, ["out"]))
    machine.forbid_all()
    machine.permit(out.address, out.bytes)
    machine.launch("test", (2, 3, 4), (5, 2, 2), 0, [out.argument()])
    assert machine.take_findings() == []
    assert out.values() == [4, 1, 1, 1, 2, 3, 5, 2, 2, 2, 3, 4, 19, 0]


# ---- shuffles and votes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "b", "c", "source"),
    [
        ("bfly", 3, 31, lambda lane: lane ^ 3),
        ("idx", 5, 31, lambda lane: 5),
        ("up", 2, 0, lambda lane: lane - 2 if lane >= 2 else lane),
        ("down", 2, 31, lambda lane: lane + 2 if lane < 30 else lane),
        # Segments of eight lanes: the mask of segments is in bits 8 to 12.
        ("idx", 2, 0x181F, lambda lane: lane // 8 * 8 + 2),
        ("up", 1, 0x1800, lambda lane: lane - 1 if lane % 8 else lane),
        ("down", 1, 0x181F, lambda lane: lane + 1 if lane % 8 < 7 else lane),
        ("bfly", 8, 0x181F, lambda lane: lane ^ 8 if lane & 8 else lane),
    ],
)
def test_shuffles(mode: str, b: int, c: int, source: Any) -> None:
    body = f"""
    add.u32 %x, %lane, 100;
    shfl.sync.{mode}.b32 %y|%p, %x, {b}, {c}, -1;
    selp.u32 %d, 1000, 0, %p;
    add.u32 %d, %d, %y;
    """
    computed, found = values(body)
    assert found == []
    in_range = {  # true where the source is within the segment and the clamp
        "up": lambda lane: lane % (8 if c & 0x1800 else 32) >= b,
        "down": lambda lane: lane % (8 if c & 0x1800 else 32) + b < (8 if c & 0x1800 else 32),
        "bfly": lambda lane: b < 8 or source(lane) != lane,
        "idx": lambda lane: True,
    }[mode]
    assert computed == [100 + source(lane) + 1000 * in_range(lane) for lane in range(32)]


def test_shuffle_from_a_lane_that_does_not_take_part() -> None:
    body = """
    setp.ge.u32 %p, %lane, 31;
    @%p exit;
    shfl.sync.bfly.b32 %d, %lane, 1, 31, -1;
    """
    _, (found,) = values(body)
    assert (found.kind, found.count) == ("shuffle from an inactive lane", 1)
    assert "lane 30: lane 31" in found.detail


def test_lanes_outside_of_their_own_mask() -> None:
    _, found = values("bar.warp.sync 0xfffffffe;")
    assert kinds(found) == {"lane is not in its own member mask"}


def test_votes() -> None:
    body = "setp.lt.u32 %p, %lane, 5; vote.sync.ballot.b32 %d, {}%p, -1;"
    assert values(body.format("")) == ([0x1F] * 32, [])
    assert values(body.format("!")) == ([0xFFFFFFE0] * 32, [])
    for mode, limit, expected in (("any", 1, 1), ("any", 0, 0), ("all", 32, 1), ("all", 31, 0)):
        body = f"""
        setp.lt.u32 %p, %lane, {limit};
        vote.sync.{mode}.pred %q, %p, -1;
        selp.u32 %d, 1, 0, %q;
        """
        assert values(body) == ([expected] * 32, [])


@pytest.mark.parametrize(("mode", "largest"), [("max", True), ("min", False)])
def test_reductions(mode: str, largest: bool) -> None:
    body = f"""
    sub.s32 %x, 9, %lane;
    setp.lt.u32 %p, %lane, 2;
    @%p exit;
    redux.sync.{mode}.s32 %d, %x, -4;
    """
    computed, found = values(body)
    assert found == []
    assert computed[2:] == [7 if largest else 2**32 - 22] * 30


# ---- barriers and deadlocks ----------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_warps_wait_for_each_other_at_a_barrier(order: str) -> None:
    interpreter().set(warp_order=order)
    body = """
    mad.lo.u32 %x, %lane, 4, memory;
    st.shared.u32 [%x], %lane;
    bar.sync 0;
    xor.b32 %y, %lane, 96;
    mad.lo.u32 %x, %y, 4, memory;
    ld.shared.u32 %d, [%x];
    bar.sync 0;
    st.shared.u32 [%x], %d;
    """
    computed, found = values(body, threads=128, shared=512)
    assert found == []
    assert computed == [thread ^ 96 for thread in range(128)]


def test_order_of_warps() -> None:
    """The last warp to write a place wins, where races are not searched."""
    body = "shr.u32 %x, %lane, 5; st.shared.u32 [memory], %x; ld.shared.u32 %d, [memory];"
    last = """
    shr.u32 %x, %lane, 5;
    st.global.u32 [%out], %x;
    """
    machine = interpreter()
    machine.set(find_races=False)
    winners = {}
    for order in ORDERS:
        machine.set(warp_order=order)
        out = Buffer("u32", [9])
        assert launch(kernel(f".reg .b32 %x; {last}", ["out"]), out, threads=128) == []
        winners[order] = out.values()[0]
    assert winners["forward"] == 3
    assert winners["reverse"] == 0
    assert values(body, threads=64, shared=4)[1] == []


def test_chance_depends_on_the_seed_alone() -> None:
    machine = interpreter()
    machine.set(find_races=False, warp_order="random")
    # The warps take turns: the order in which they last add to their sums differs by seed.
    body = """
    .reg .b32 %x, %i, %old;
    .reg .pred %p;
    shr.u32 %x, %lane, 5;
    mov.u32 %i, 0;
    LOOP:
    ld.global.u32 %old, [%out];
    mad.lo.u32 %old, %old, 31, %x;
    st.global.u32 [%out], %old;
    add.u32 %i, %i, 1;
    setp.lt.u32 %p, %i, 200;
    @%p bra LOOP;
    """

    def outcome(seed: int) -> Value:
        machine.set(seed=seed)
        out = Buffer("u32", [0])
        launch(kernel(body, ["out"]), out, threads=128)
        return out.values()[0]

    outcomes = [outcome(seed) for seed in range(5)]
    assert len(set(outcomes)) == 5
    assert outcomes == [outcome(seed) for seed in range(5)]


def test_warps_that_exit_do_not_hold_up_a_barrier() -> None:
    body = """
    setp.ge.u32 %p, %lane, 32;
    @%p exit;
    bar.sync 0;
    mov.u32 %d, 1;
    """
    assert values(body, threads=64) == ([1] * 32 + [0] * 32, [])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("@%p bar.sync 0;", "guard"),
        ("@%p bar.warp.sync -1;", "guard"),
        ("@%p bra A; bar.sync 0; bra B; A: bar.sync 0; B:", "deadlock"),
        ("@%p bra A; bar.warp.sync -1; bra B; A: bar.warp.sync -1; B:", "deadlock"),
        ("@%p trap;", "trap"),
        ("selp.b32 %x, -1, 0xffff, %p; bar.warp.sync %x;", "different member masks"),
    ],
)
def test_launches_that_cannot_go_on(body: str, reason: str) -> None:
    text = module(f"setp.lt.u32 %p, %lane, 16;\n{body}")
    out = Buffer("u32", [0] * 32)
    with pytest.raises(interpreter().Refusal, match=f"test.ptx:{line_of(text, body)}: .*{reason}"):
        launch(text, out)
    # The next launch is not affected.
    assert values("mov.u32 %d, 3;") == ([3] * 32, [])
