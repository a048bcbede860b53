"""`make budget`: reading machine code, and what counts as a problem."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import cuda_build
import toolchain
from benchmarks import budget
from benchmarks.kernel_budget import sass

# Each line is an instruction; the first stands at address 0, the next 16 bytes further.
LOOP = """
    S2R R0, SR_TID.X
    LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]
    LDSM.16.M88.4 R4, [R8]
    HMMA.16816.F32 R12, R4, R9, R12
    NOP
@P0 BRA 0x10
    STG.E.128 desc[UR4][R2.64], R12
    EXIT
    BRA 0x80
    NOP
"""
SPILL_IN_LOOP = LOOP.replace("STG.E.128 desc", "EXIT\n    STG.E.128 desc").replace(
    "LDSM.16.M88.4", "LDL.64 R6, [R1+0x8]\n    LDSM.16.M88.4"
)
SPILL_BEFORE_LOOP = """
    STL.128 [R1], R4
    LDL R6, [R1+0x4]
    HMMA.16816.F32 R12, R4, R9, R12
    BRA.U UP0, 0x20
    EXIT
"""
# The branch at 0x70 goes back to what follows the loop: a detour, and nothing runs twice.
DETOUR_AFTER_LOOP = """
    HMMA.16816.F32 R12, R4, R9, R12
@P0 BRA 0x0
@P1 BRA 0x60
    LDL R6, [R1]
    STG.E desc[UR4][R2.64], R12
    EXIT
    STL [R1], R7
    BRA 0x30
"""
# A rarely taken part of the loop was moved behind the end of the kernel.
LOOP_PART_MOVED_AWAY = """
    HMMA.16816.F32 R12, R4, R9, R12
@P1 BRA 0x50
    IADD3 R2, R2, 0x1, RZ
@P0 BRA 0x0
    EXIT
    LDL.U16 R6, [R1]
    BRA 0x20
"""
NESTED = """
    LDG.E R0, desc[UR4][R2.64]
    HMMA.16816.F32 R12, R4, R9, R12
    HMMA.16816.F32 R12, R4, R9, R12
@P0 BRA 0x10
    STL [R1], R12
@P1 BRA 0x0
    EXIT
"""
TWO_LOOPS = """
    HMMA.16816.F32 R12, R4, R9, R12
@P0 BRA 0x0
    HMMA.16816.F32 R12, R4, R9, R12
    HMMA.16816.F32 R12, R4, R9, R12
    IADD3 R2, R2, 0x1, RZ
@P0 BRA 0x20
    EXIT
"""
LEFT_IN_THE_MIDDLE = """
    HMMA.16816.F32 R12, R4, R9, R12
    BRA.U UP0, 0x40
    IADD3 R2, R2, 0x1, RZ
    BRA 0x0
    EXIT
"""
STREAMING = """
    MOV R1, c[0x0][0x28]
    LDG.E.128 R4, desc[UR4][R2.64]
    STG.E.128 desc[UR4][R8.64], R4
@!P0 BRA 0x10
    EXIT
"""


def disassembly(name: str, listing: str) -> str:
    """The form in which cuobjdump prints `listing`."""
    lines = ["", "\tcode for sm_90", f"\t\tFunction : {name}", '\t.headerflags\t@"EF_CUDA_SM90"']
    for index, line in enumerate(listing.strip("\n").split("\n")):
        predicate, _, instruction = (
            line.rpartition("    ") if line[0] == " " else line.partition(" ")
        )
        text = f"{predicate.strip():>5} {instruction.strip()}"
        lines.append(
            f"        /*{index * 16:04x}*/              {text} ;   /* 0x000000ff00017b82 */"
        )
        lines.append(" " * 80 + "/* 0x000fe20000000800 */")
    return "\n".join([*lines, "\t\t.........."])


def instructions(listing: str) -> list[sass.Instruction]:
    ((_, found),) = sass.functions(disassembly("kernel", listing))
    return found


def measure(listing: str) -> sass.Kernel:
    return sass.measure("kernel", "90", instructions(listing), registers=64, shared=0)


def test_a_disassembly_is_split_into_functions_and_instructions() -> None:
    text = disassembly("_Z5firstv", LOOP) + disassembly("_Z6secondv", "    EXIT")
    (first, code), (second, rest) = sass.functions(text)
    assert (first, second) == ("_Z5firstv", "_Z6secondv")
    assert len(code) == 10
    assert code[5] == sass.Instruction(0x50, "P0", "BRA", "0x10")
    assert rest == [sass.Instruction(0, None, "EXIT", "")]


def test_notes_on_scheduling_are_no_operands() -> None:
    """cuobjdump 12.8 prints them for sm_120."""
    text = disassembly("kernel", LOOP).replace(" ;", "    &req={0} &wr=0x1   ?WAIT4_END_GROUP;")
    ((_, found),) = sass.functions(text)
    assert found == instructions(LOOP)


def test_the_mix_is_that_of_the_main_loop() -> None:
    kernel = measure(LOOP)
    assert kernel.mix == Counter(LDGSTS=1, LDSM=1, HMMA=1, other=1, total=4)
    assert (kernel.spill_stores, kernel.spill_loads, kernel.local_in_loops) == (0, 0, 0)


def test_local_memory_in_a_main_loop_is_found() -> None:
    kernel = measure(SPILL_IN_LOOP)
    assert (kernel.spill_loads, kernel.local_in_loops) == (8, 1)


def test_local_memory_before_a_main_loop_is_no_access_in_it() -> None:
    kernel = measure(SPILL_BEFORE_LOOP)
    assert (kernel.spill_stores, kernel.spill_loads, kernel.local_in_loops) == (16, 4, 0)
    assert kernel.mix["total"] == 2


def test_a_detour_after_a_loop_is_no_loop_around_it() -> None:
    kernel = measure(DETOUR_AFTER_LOOP)
    assert kernel.mix == Counter(HMMA=1, other=1, total=2)
    assert kernel.local_in_loops == 0


def test_a_part_of_a_loop_that_was_moved_away_belongs_to_it() -> None:
    kernel = measure(LOOP_PART_MOVED_AWAY)
    assert kernel.mix == Counter(HMMA=1, integer=1, LDL=1, other=3, total=6)
    assert (kernel.spill_loads, kernel.local_in_loops) == (2, 1)


def test_of_nested_loops_the_innermost_is_mixed_and_all_are_searched_for_spills() -> None:
    kernel = measure(NESTED)
    assert kernel.mix == Counter(HMMA=2, other=1, total=3)
    assert kernel.local_in_loops == 1


def test_of_several_loops_that_with_the_most_matrix_instructions_is_mixed() -> None:
    kernel = measure(TWO_LOOPS)
    assert kernel.mix == Counter(HMMA=2, integer=1, other=1, total=4)


def test_a_condition_may_stand_among_the_operands() -> None:
    assert measure(LEFT_IN_THE_MIDDLE).mix == Counter(HMMA=1, integer=1, other=2, total=4)


def test_without_matrix_instructions_the_loop_over_global_memory_is_the_main_loop() -> None:
    assert measure(STREAMING).mix == Counter(LDG=1, STG=1, other=1, total=3)
    assert measure("    MOV R1, R2\n    EXIT").mix == Counter(total=0)


def test_an_indirect_branch_is_refused_rather_than_guessed() -> None:
    with pytest.raises(ValueError, match="indirect branch at 0x10"):
        measure("    MOV R1, R2\n    BRX R2 -0x20\n    EXIT")


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("HMMA.1688.F32 R0, R4, R6, R0", "HMMA"),
        ("LDSM.16.MT88.4 R0, [R4]", "LDSM"),
        ("LDS.128 R0, [R4]", "LDS"),
        ("STS.64 [R4], R0", "STS"),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "LDG"),
        ("MUFU.EX2 R0, R1", "MUFU"),
        ("FFMA R0, R1, R2, R3", "FFMA"),
        ("HADD2.F32 R0, -RZ, R1.H0_H0", "FFMA"),
        ("FSETP.GT.AND P0, PT, R0, R1, PT", "FFMA"),
        ("IMAD.WIDE R0, R1, R2, R3", "integer"),
        ("UIADD3 UR4, UR4, 0x1, URZ", "integer"),
        ("LOP3.LUT R0, R1, R2, RZ, 0xfc, !PT", "integer"),
        ("PRMT R0, R1, 0x5410, R2", "integer"),
        ("IMAD.MOV.U32 R0, RZ, RZ, R1", "MOV"),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 0", "MOV"),
        ("UMOV UR4, 0x400", "MOV"),
        ("LDL R0, [R1]", "LDL"),
        ("STL.64 [R1], R2", "STL"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "other"),
        ("SHFL.BFLY PT, R0, R1, 0x1, 0x1f", "other"),
    ],
)
def test_instructions_are_told_apart(instruction: str, expected: str) -> None:
    assert sass.mix(instructions(f"    {instruction}")) == Counter({expected: 1, "total": 1})


@pytest.mark.parametrize(
    ("demangled", "expected"),
    [
        (
            "void depthwise::forward<__half, 9, 2, true>(depthwise::Arguments, int (*)(int))",
            "forward<half, 9, 2, true>",
        ),
        ("void (anonymous namespace)::sums<__nv_bfloat16, (int)7>(float*)", "sums<bfloat16, 7>"),
        ("void a::b::c<(a::Type)1, (unsigned int)4>(a::D<(a::Type)1>)", "c<1, 4>"),
        ("add(float*, int)", "add"),
    ],
)
def test_names_can_be_read(demangled: str, expected: str) -> None:
    assert budget.readable(demangled) == expected


ROW = budget.Row(
    "nvcc 13.0.88", "forward<half, 9>", "90", {name: 10 for name in budget.NUMBERS}, reason="tails"
)


def changed(**numbers: int) -> budget.Row:
    return replace(ROW, numbers={**ROW.numbers, **numbers})


def test_an_unchanged_or_better_kernel_is_no_problem() -> None:
    assert budget.table_problems([ROW], [ROW]) == []
    assert budget.table_problems([changed(registers=9, total=1, HMMA=99)], [ROW]) == []


@pytest.mark.parametrize("name", ["registers", "spill_stores", "spill_loads", "total"])
def test_a_worse_kernel_is_a_problem(name: str) -> None:
    (problem,) = budget.table_problems([changed(**{name: 11})], [ROW])
    assert problem == f"forward<half, 9> sm_90: {name} 11, in budget.csv 10"


def test_numbers_of_another_compiler_version_are_not_compared() -> None:
    other = replace(changed(registers=99), compiler="nvcc 14.1.0")
    assert budget.table_problems([other], [ROW]) == []


def test_the_table_must_list_exactly_the_kernels_there_are() -> None:
    other = replace(ROW, architecture="80")
    new, gone = budget.table_problems([other], [ROW])
    assert new == "forward<half, 9> sm_80: not in budget.csv"
    assert gone == "forward<half, 9> sm_90: in budget.csv, but there is no such kernel"


def test_a_spill_outside_main_loops_needs_a_reason() -> None:
    unexplained = replace(ROW, reason="")
    (problem,) = budget.table_problems(budget.with_reasons([ROW], [unexplained]), [unexplained])
    assert "gives no reason" in problem
    assert budget.table_problems(budget.with_reasons([unexplained], [ROW]), [ROW]) == []


def test_the_reason_goes_when_the_spill_does() -> None:
    (row,) = budget.with_reasons([changed(spill_stores=0, spill_loads=0)], [ROW])
    assert row.reason == ""


def test_the_table_survives_a_round_trip(tmp_path: Path) -> None:
    rows = [replace(changed(registers=64), kernel=f"forward<half, {k}>") for k in (11, 9)]
    budget.write_table(tmp_path / "budget.csv", rows)
    assert budget.read_table(tmp_path / "budget.csv") == [rows[1], rows[0]]
    assert budget.read_table(tmp_path / "absent.csv") == []


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(budget, "TABLE", tmp_path / "budget.csv")
    monkeypatch.setattr(budget, "measure_cuda", lambda architectures: [ROW])
    monkeypatch.setattr(budget, "measure_triton", lambda architectures: [])
    return tmp_path / "budget.csv"


def test_the_command_fails_until_the_table_is_right(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert budget.main([]) == 1
    assert budget.main(["--update"]) == 1  # the spill has no reason yet
    table.write_text(table.read_text().replace(",\n", ",first and last tile\n"))
    assert budget.main([]) == 0
    output = capsys.readouterr().out
    assert "1 kernels spill: first and last tile" in output
    assert output.endswith("budget: 1 kernels, 0 problems\n")
    assert budget.main(["--update"]) == 0  # and keeps the reason


def test_the_command_fails_for_local_memory_in_a_loop_until_the_table_says_so(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = replace(ROW, local_in_loops=3)
    monkeypatch.setattr(budget, "measure_cuda", lambda architectures: [bad])
    assert budget.main(["--update"]) == 1
    expected = "budget: forward<half, 9> sm_90: 3 accesses to local memory in a main loop"
    assert expected in capsys.readouterr().out
    table.write_text(table.read_text().replace(",\n", ",first and last tile\n"))
    assert budget.main([]) == 1
    table.write_text(table.read_text().replace("last tile\n", "last tile of the main loop\n"))
    assert budget.main([]) == 0


def test_updating_without_triton_keeps_its_rows(table: Path) -> None:
    triton = replace(ROW, compiler="triton 3.6.0")
    budget.write_table(table, [triton])
    budget.main(["--update"])
    assert {row.family for row in budget.read_table(table)} == {"nvcc", "triton"}


def test_without_nvcc_the_command_says_so(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(architectures: list[str]) -> list[budget.Row]:
        raise toolchain.Missing("there is no nvcc", "install one")

    monkeypatch.setattr(budget, "measure_cuda", missing)
    assert budget.main([]) == 2
    assert "there is no nvcc; install one" in capsys.readouterr().err


# Only run time tells which of the values is used, so they cannot stay in registers.
SPILLING_KERNEL = """
#include <cstdint>
namespace tests {
template <class T, int Size>
__global__ void spilling(float* sums, const uint32_t* x, const int* pick, int count) {
  float values[Size] = {};
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    float* c = values + pick[i];
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9},"
        "{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(x[4]), "r"(x[5]));
  }
  for (int i = 0; i < Size; ++i) sums[i] = values[i];
}
template __global__ void spilling<float, 64>(float*, const uint32_t*, const int*, int);
}
"""


def test_a_kernel_is_compiled_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        toolkit = toolchain.find_toolkit()
    except toolchain.Missing as missing:
        pytest.skip(str(missing))
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING_KERNEL)
    monkeypatch.setattr(cuda_build, "cuda_units", lambda: [cuda_build.Unit("spilling", source)])
    monkeypatch.setattr(budget, "ROOT", tmp_path)
    (row,) = budget.measure_cuda(["90"])
    assert (row.kernel, row.architecture) == ("spilling<float, 64>", "90")
    assert row.numbers["HMMA"] == 1
    assert row.numbers["LDL"] >= 4 and row.numbers["STL"] >= 4
    assert row.local_in_loops >= 8
    assert 16 <= row.numbers["registers"] <= 255

    objects = tmp_path / "objects"
    objects.mkdir()
    with pytest.raises(FileNotFoundError):
        budget.measure_objects(objects)
    nvcc = (toolkit.nvcc, "-ccbin", toolkit.host_compiler, *cuda_build.NVCC_FLAGS)
    output = objects / "spilling.cu.o"
    subprocess.run([*nvcc, "-arch=sm_90", "-c", source, "-o", output], check=True)
    assert budget.measure_objects(objects) == [row]


def test_objects_are_compared_for_their_architectures_alone(
    table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fine = changed(spill_stores=0, spill_loads=0)
    others = [replace(fine, architecture="80"), replace(fine, compiler="triton 3.6.0")]
    budget.write_table(table, [fine, *others])
    monkeypatch.setattr(budget, "measure_objects", lambda folder: [fine])
    assert budget.main(["--objects", str(tmp_path)]) == 0
    assert budget.main(["--objects", str(tmp_path), "--update"]) == 0
    assert len(budget.read_table(table)) == 3
    assert budget.main([]) == 1  # there it misses the kernel for sm_80
