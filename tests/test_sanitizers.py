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
SOURCES = Path(__file__).parent / "csrc"
# The programs, and files of instantiations without their size: what each runs.
ROLES = {
    "depthwise_test": (
        "forward",
        "weight_gradient",
        "channels_last_forward",
        "channels_last_weight_gradient",
    ),
    "fused_test": ("fused_forward", "channels_last_fused_forward", "backward", "batch_norm"),
}
PROGRAM_OF = {role: program for program, roles in ROLES.items() for role in roles}
# The core that both layouts share is built for each form of its windows, other jobs too; from 13 on
# the backward pass gives no weight gradient.
BOTH_FORMS = ("forward", "weight_gradient", "channels_last_weight_gradient", "backward")
# Those that dispatch know kernels that are not linked in; they are not called either.
INCOMPLETE = ("-Wl,--unresolved-symbols=ignore-in-object-files", "-no-pie")


def files(role: str, sizes: tuple[int, ...]) -> list[str]:
    """What is compiled for a role."""
    if role == "batch_norm":
        return ["batch_norm.cu"]
    return [f"instantiations/{role}_{size}.cu" for size in sizes]


def build(
    name: str, program: str, sanitizer: str, kernels: list[str], csrc: Path, *flags: str
) -> Path:
    """A test program with these files of kernels, from the sources in `csrc`."""
    around = ["dispatch.cpp", "add_shares.cu"]
    if program == "fused_test":
        around += ["dispatch_fused.cpp", "batch_norm.cu"]
    sources = [
        SOURCES / f"{program}.cpp",
        *(CSRC / file for file in around if file not in kernels),
        *(csrc / file for file in kernels),
    ]
    flags = (*INCOMPLETE, *flags)
    return emulation_build.build_executable(name, sources, sanitizer=sanitizer, flags=flags)


def sizes(role: str, sanitizer: str) -> tuple[int, ...]:
    """The filter sizes that are built, and run besides 8."""
    return (9, 15) if sanitizer == "address" and role in BOTH_FORMS else (9,)


@functools.cache
def clean(program: str, sanitizer: str) -> Path:
    kernels = [file for role in ROLES[program] for file in files(role, sizes(role, sanitizer))]
    return build(program, program, sanitizer, kernels, CSRC)


@pytest.mark.parametrize("role", PROGRAM_OF)
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
    program = clean(PROGRAM_OF[role], sanitizer)
    result = run_program(program, *arguments, order=order, copies=copies, seed=5)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(("role", "sanitizer"), MUTATIONS)
def test_planted_faults_are_caught(role: str, sanitizer: str, tmp_path: Path) -> None:
    evidence = {
        "thread": "ThreadSanitizer|instead of|emulated kernel",
        "address": "AddressSanitizer",
    }[sanitizer]

    def outputs(csrc: Path) -> str:
        # Only what is mutated is compiled again: the name of the program decides the folder.
        program = PROGRAM_OF[role]
        kernels = files(role, (9,))
        built = build(f"mutated_{role}", program, sanitizer, kernels, csrc, "-DONE_TYPE")
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
