"""The emulation of CUDA on the CPU: right kernels pass, planted faults are caught."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from convmixer_kernels import emulation_build

from .emulation_programs import run_program

SOURCE = Path(__file__).parent / "csrc" / "emulation_test.cpp"
RIGHT, WRONG, FAULT = 0, 1, 3  # exit codes of the program


@functools.cache
def program(sanitizer: str | None, *flags: str) -> Path:
    return emulation_build.build_executable(
        "emulation_test", [SOURCE], sanitizer=sanitizer, flags=flags
    )


@pytest.mark.parametrize(
    ("sanitizer", "order", "copies"),
    [
        *((None, order, "late") for order in ("forward", "reverse", "shuffle")),
        *(("address", order, "early") for order in ("forward", "reverse")),
        ("address", "shuffle", "random"),
        ("thread", "forward", "late"),
        ("thread", "shuffle", "early"),
    ],
)
def test_right_kernels_pass(sanitizer: str | None, order: str, copies: str) -> None:
    result = run_program(program(sanitizer), "tests", order=order, copies=copies, seed=3)
    assert (result.returncode, result.stdout) == (RIGHT, "")


def test_right_kernels_pass_without_assembly() -> None:
    result = run_program(program(None, "-DEMULATION_UCONTEXT"), "tests", order="reverse")
    assert (result.returncode, result.stdout) == (RIGHT, "")


# Faults that give wrong results: under what order and timing of copies, and when they stay hidden.
@pytest.mark.parametrize(
    ("fault", "showing", "hiding"),
    [
        ("missing_block_barrier", ("reverse", "late"), ("forward", "late")),
        ("missing_warp_barrier", ("reverse", "late"), ("forward", "late")),
        ("blocks_race", ("reverse", "late"), ("forward", "late")),
        ("missing_wait", ("forward", "late"), ("forward", "early")),
        ("wait_for_fewer", ("forward", "late"), ("forward", "early")),
        ("missing_commit", ("forward", "late"), ("forward", "early")),
        ("missing_barrier_after_wait", ("forward", "late"), None),
        ("missing_barrier_after_wait", ("reverse", "early"), None),
    ],
)
def test_a_race_gives_wrong_results_in_some_order(
    fault: str, showing: tuple[str, str], hiding: tuple[str, str] | None
) -> None:
    def exit_code(order: str, copies: str) -> int:
        return run_program(program(None), fault, order=order, copies=copies).returncode

    assert exit_code(*showing) == WRONG
    if hiding is not None:
        assert exit_code(*hiding) == RIGHT


def test_shuffled_order_and_random_copies_depend_on_the_seed() -> None:
    for fault in ("missing_block_barrier", "missing_wait"):
        codes = [
            run_program(
                program(None), fault, order="shuffle", copies="random", seed=seed
            ).returncode
            for seed in (1, 2, 1)
        ]
        assert codes == [WRONG, WRONG, WRONG]
    codes = {
        run_program(program(None), "blocks_race", order="shuffle", seed=seed).returncode
        for seed in range(8)
    }
    assert codes == {RIGHT, WRONG}


@pytest.mark.parametrize(
    ("sanitizer", "fault", "message"),
    [
        *(
            ("thread", fault, r"data race(.|\n)*emulation_test\.cpp:\d+")
            for fault in (
                *("missing_block_barrier", "missing_warp_barrier", "blocks_race"),
                *("missing_barrier_after_wait", "write_past_shared"),
            )
        ),
        *(
            ("address", fault, rf"AddressSanitizer: {kind}(.|\n)*emulation_test\.cpp:\d+")
            for fault, kind in (
                ("read_global", "heap-buffer-overflow"),
                ("write_global", "heap-buffer-overflow"),
                ("copy_from_outside", "heap-buffer-overflow"),
                ("read_past_shared", "use-after-poison"),
                ("write_past_shared", "use-after-poison"),
                ("write_before_shared", "use-after-poison"),
                ("copy_to_outside", "use-after-poison"),
            )
        ),
        ("address", "misaligned_vector", r"emulation_test\.cpp:\d+.*misaligned address"),
    ],
)
def test_a_sanitizer_names_the_line(sanitizer: str, fault: str, message: str) -> None:
    result = run_program(program(sanitizer), fault)
    assert result.returncode not in (RIGHT, FAULT)
    assert re.search(message, result.stdout), result.stdout


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("return_with_copies", r"thread \(30, 0, 0\).*asynchronous copies under way"),
        (
            "write_past_shared",
            "wrote to shared memory of no array, 0 bytes after the end of number 1",
        ),
        ("write_before_shared", "wrote to shared memory of no array, 4 bytes before the first"),
        ("copy_to_outside", "wrote to shared memory of no array"),
        ("misaligned_load", r"ld\.global \(.*:\d+\): the address is not a multiple of 8"),
        ("misaligned_store", r"st\.global \(.*:\d+\): the address is not a multiple of 8"),
        ("misaligned_shared", r"st\.shared\.v4 \(.*:\d+\): the address is not a multiple of 16"),
        ("misaligned_matrix", r"ldmatrix\.x4 \(.*:\d+\): the address is not a multiple of 16"),
        ("misaligned_copy", r"cp\.async \(.*:\d+\): the address is not a multiple of 8"),
        ("not_shared", r"ldmatrix\.x4 \(.*:\d+\): the address is not one of shared memory"),
        ("take_too_much", "516 bytes taken, but the launch asked for 512"),
        ("take_differently", r"thread \(40, 0, 0\).*an array of another size"),
        (
            "divergent_collective",
            r"thread \(5, 0, 0\), __shfl_xor_sync \(.*\): other lanes .* at __syncwarp \(.*:\d+\)",
        ),
        (
            "divergent_barrier",
            r"thread \(32, 0, 0\), __syncthreads \(.*\): other threads .* at __syncthreads",
        ),
        (
            "deadlock",
            r"deadlock; 0 of 64 .*; __syncwarp \(.*:\d+\) holds 20, the first thread \(0, 0, 0\); "
            r"__syncthreads \(.*:\d+\) holds 44, the first thread \(20, 0, 0\)",
        ),
        ("barrier_after_return", "deadlock; 1 of 64 threads have returned; __syncthreads"),
        ("collective_after_return", "other threads of the block have returned"),
        ("partial_mask", r"__syncwarp \(.*:\d+\): not the whole warp"),
        ("incomplete_warp", "the warp has fewer than 32 threads"),
    ],
)
def test_a_fault_is_named(fault: str, message: str) -> None:
    result = run_program(program(None), fault)
    assert result.returncode == FAULT
    assert result.stdout.startswith("emulated kernel: block (0, 0, 0)")
    assert re.search(message, result.stdout), result.stdout


@pytest.mark.parametrize(
    ("variable", "accepted"),
    [
        ("ORDER", "forward, reverse or shuffle"),
        ("COPIES", "late, early or random"),
        ("SEED", "a number"),
        ("SHARED_BYTES", "a number"),
    ],
)
def test_a_fault_is_a_python_exception(
    variable: str, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("convmixer_kernels.backends.cuda")
    input, weight = torch.randn(1, 1, 4, 4).half(), torch.randn(1, 1, 3, 3).half()
    monkeypatch.setenv("CONVMIXER_KERNELS_EMULATE", "1")
    assert cuda.unavailable(input.device) is None
    name = f"CONVMIXER_KERNELS_EMULATION_{variable}"
    monkeypatch.setenv(name, "sideways")
    with pytest.raises(RuntimeError, match=f'{name} is "sideways"; it must be {accepted}'):
        cuda.forward(input, weight, None)
    monkeypatch.delenv(name)
    assert torch.isfinite(cuda.forward(input, weight, None)).all()


class TestBuild:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_DIR", str(tmp_path))
        emulation_build._compiler.cache_clear()
        return tmp_path

    def source(self, folder: Path, text: str) -> Path:
        path = folder / "program.cpp"
        path.write_text(text)
        return path

    def test_rebuilds_what_has_changed(self, folder: Path) -> None:
        header = folder / "value.h"
        source = self.source(folder, '#include "value.h"\nint main() { return value; }\n')
        for value in (4, 4, 7):
            if not header.exists() or str(value) not in header.read_text():
                header.write_text(f"constexpr int value = {value};\n")
            built = emulation_build.build_executable("program", [source])
            assert built.is_relative_to(folder)
            assert run_program(built).returncode == value

    def test_flags_and_sanitizers_do_not_share_a_folder(self, folder: Path) -> None:
        source = self.source(folder, "int main() { return 0; }\n")
        build = functools.partial(emulation_build.build_executable, "program", [source])
        programs = {build(), build(sanitizer="address"), build(flags=["-DX"])}
        assert len(programs) == 3

    def test_a_source_that_does_not_compile(self, folder: Path) -> None:
        source = self.source(folder, "int main() { return nonsense; }\n")
        with pytest.raises(RuntimeError, match=r"does not compile:(.|\n)*nonsense"):
            emulation_build.build_executable("program", [source])

    def test_missing_sources(self, folder: Path) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist; work in a checkout"):
            emulation_build.build_module(folder / "csrc")

    def test_missing_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(FileNotFoundError, match=r"no C.* 'no-such-compiler'.*install"):
            emulation_build.build_executable("program", [SOURCE])

    def test_old_compiler(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler = folder / "g++-9"
        compiler.write_text("#!/bin/sh\necho 'g++ (Distribution 9.4.0-1) 9.4.0'\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        with pytest.raises(FileNotFoundError, match=r"9\.4\.0; the emulation needs g\+\+ 11"):
            emulation_build.build_executable("program", [SOURCE])

    def test_missing_headers(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation_build, "_HEADERS", ("no_such_header.h",))
        with pytest.raises(FileNotFoundError, match="headers of CUDA are missing; install"):
            emulation_build.build_executable("program", [SOURCE])

    def test_headers_of_cuda_home_come_first(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(emulation_build, "_HEADERS", ("some_header.h",))
        (folder / "include").mkdir()
        (folder / "include" / "some_header.h").touch()
        monkeypatch.setenv("CUDA_HOME", str(folder))
        assert emulation_build.find_cuda_headers() == folder / "include"

    def test_missing_ninja(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation_build.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(
            emulation_build.shutil, "which", lambda name: None if name == "ninja" else "/bin/true"
        )
        monkeypatch.setattr(emulation_build, "_compiler", lambda: ("/bin/true", "1"))
        with pytest.raises(FileNotFoundError, match="ninja is not installed"):
            emulation_build.build_executable("program", [SOURCE])

    def test_a_folder_that_cannot_be_written(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blocked = folder / "file"
        blocked.touch()
        monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_DIR", str(blocked))
        with pytest.raises(RuntimeError, match="set CONVMIXER_KERNELS_EMULATION_DIR"):
            emulation_build.build_executable("program", [SOURCE])
