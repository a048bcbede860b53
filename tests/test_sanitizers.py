"""The CUDA kernels, emulated, under the address, undefined behaviour and thread sanitizers.

That these tests catch what they are for is tested by planting faults in copies of the sources.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from convmixer_kernels import emulation_build

from .emulation_programs import run_program
from .mutations import MUTATIONS, copy_sources

CSRC = emulation_build.CSRC
SOURCE = Path(__file__).parent / "csrc" / "depthwise_test.cpp"
# Files of instantiations, without their size.
ROLES = ("forward", "weight_gradient", "channels_last_forward", "channels_last_weight_gradient")
# dispatch.cpp knows kernels that are not linked in; they are not called either.
INCOMPLETE = ("-Wl,--unresolved-symbols=ignore-in-object-files", "-no-pie")


def build(name: str, sanitizer: str, instantiations: list[str], csrc: Path) -> Path:
    """The test program with these files of instantiations, from the sources in `csrc`."""
    sources = [
        *(SOURCE, CSRC / "dispatch.cpp", CSRC / "add_shares.cu"),
        *(csrc / "instantiations" / file for file in instantiations),
    ]
    return emulation_build.build_executable(name, sources, sanitizer=sanitizer, flags=INCOMPLETE)


def sizes(role: str, sanitizer: str) -> tuple[int, ...]:
    """Those to build: one for each form of the windows, in the core that both layouts share."""
    return (9, 15) if sanitizer == "address" and role in ROLES[:2] else (9,)


@functools.cache
def program(sanitizer: str) -> Path:
    files = [f"{role}_{size}.cu" for role in ROLES for size in sizes(role, sanitizer)]
    return build("depthwise_test", sanitizer, files, CSRC)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("sanitizer", "order", "copies"),
    [
        ("address", "forward", "late"),
        ("address", "reverse", "early"),
        ("address", "shuffle", "random"),
        ("thread", "forward", "late"),
        ("thread", "shuffle", "random"),
    ],
)
def test_kernels_are_clean(sanitizer: str, order: str, copies: str, role: str) -> None:
    arguments = [role, "8", *map(str, sizes(role, sanitizer))]  # 8 is run by the kernels of 9
    result = run_program(program(sanitizer), *arguments, order=order, copies=copies, seed=5)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(("role", "sanitizer"), MUTATIONS)
def test_planted_faults_are_caught(role: str, sanitizer: str, tmp_path: Path) -> None:
    evidence = {
        "thread": "ThreadSanitizer|instead of|emulated kernel",
        "address": "AddressSanitizer",
    }[sanitizer]

    def outputs(csrc: Path) -> str:
        # Only what is mutated is compiled again: the name of the program decides the folder.
        built = build(f"mutated_{role}", sanitizer, [f"{role}_9.cu"], csrc)
        runs = [
            run_program(built, role, "9", order=order, copies=copies)
            for order, copies in (("forward", "late"), ("reverse", "early"))
        ]
        return "".join(run.stdout for run in runs if run.returncode != 0)

    if sanitizer == "thread":  # whose sources have fewer barriers
        assert outputs(copy_sources(CSRC, tmp_path / "right")) == ""
    missed = [
        mutation.what
        for number, mutation in enumerate(MUTATIONS[role, sanitizer])
        if not re.search(evidence, outputs(copy_sources(CSRC, tmp_path / str(number), mutation)))
    ]
    assert not missed
