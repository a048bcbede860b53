"""The visit to a GPU: dry runs of it, and what it makes of facts, tools and sources."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import phases, report, visit
from benchmarks.lib import facts, machine
from benchmarks.phases import (
    counters,
    micro,
    profiling,
    sanitizers,
    source_variants,
    suite,
    timings,
)
from benchmarks.phases.context import Visit
from benchmarks.reports import checks, records

ROOT = Path(__file__).resolve().parents[2]
KILLS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the outcomes of dry_visits.py."""
    folder = tmp_path_factory.mktemp("visits")
    command = [sys.executable, "-m", "tests.tooling.dry_visits", str(folder), str(KILLS), "12"]
    # No GPU is wanted here.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


def phase_outcomes(lines: list[str]) -> dict[str, str]:
    found = [json.loads(line) for line in lines]
    return {each["name"]: each["outcome"] for each in found if each["fact"] == "phase"}


class TestDryRun:
    def test_every_phase_is_gone_through(self, outcome: dict[str, Any], folder: Path) -> None:
        lines = (folder / "whole" / "visit.jsonl").read_text().splitlines()
        assert phase_outcomes(lines) == dict.fromkeys(phases.NAMES, "done")
        assert outcome["whole"]["status"] == 0, outcome["whole"]["output"]
        names = [json.loads(line)["fact"] for line in lines]
        assert set(names) == {
            *("begin", "machine", "tools", "copy", "ceilings", "measured", "checked", "micro"),
            *("profile", "profile of a call", "sanitizer", "skipped", "phase"),
        }
        kinds = {json.loads(line)["extra_info"]["kind"] for line in lines if '"measured"' in line}
        assert kinds == {"depthwise", "block", "inference", "training"}

    def test_the_table_comes_last(self, outcome: dict[str, Any], folder: Path) -> None:
        lines = outcome["whole"]["output"].splitlines()
        assert lines[-1] == f"facts: {folder / 'whole' / 'visit.jsonl'}"
        assert lines[-2].startswith("phases: ") and "environment done after " in lines[-2]
        assert any(line.startswith("PyTorch, channels_last") for line in lines)
        assert not any("TROUBLE" in line for line in lines)

    def test_the_gpu_is_not_touched_before_phases_are_forked(self, outcome: dict[str, Any]) -> None:
        assert outcome["before_forks"] is None

    def test_a_report_is_made_of_it(self, outcome: dict[str, Any], folder: Path) -> None:
        path = folder / "whole" / "visit.jsonl"
        run = records.load([path])
        text = report.write(run, [path], folder / "results").read_text()
        assert "**This is a CPU.**" in text and "[visit.jsonl](visit.jsonl)" in text
        assert run.commits[0].split()[0] in text and run.machine["device"] in text
        titles = re.findall(r"^## (.*)", text, re.MULTILINE)
        assert titles == [
            "Depthwise convolution",
            "Blocks",
            "Networks",
            "Checked",
            "Choices",
            "Copies",
            "Time of networks by kernels",
            "Skipped",
        ]
        assert "not measured" not in text and "| - | - |" not in text
        for each in run.of("depthwise"):
            assert each.info["share_of_copy"] > 0

    def test_without_a_gpu_it_says_so(self, outcome: dict[str, Any]) -> None:
        assert outcome["without_gpu"]["status"] == 2
        assert "PyTorch finds no CUDA device; --dry-run" in outcome["without_gpu"]["output"]


class TestKilled:
    def test_all_that_was_reported_is_on_disk(self, outcome: dict[str, Any]) -> None:
        assert len(outcome["killed"]) == KILLS
        for each in outcome["killed"]:
            assert len(each["lines"]) >= each["reported"]
            assert all("fact" in json.loads(line) for line in each["lines"])

    def test_moments_differ(self, outcome: dict[str, Any]) -> None:
        assert len({each["reported"] for each in outcome["killed"]}) > KILLS // 2
        cut = [each for each in outcome["killed"] if "suite" not in phase_outcomes(each["lines"])]
        assert len(cut) > KILLS // 2

    def test_the_table_is_printed_all_the_same(self, outcome: dict[str, Any]) -> None:
        for each in outcome["killed"]:
            measured = [line for line in each["lines"] if '"kind": "depthwise"' in line]
            for text in [each["table"]] + [each["output"]] * (each["signal"] != "SIGKILL"):
                lines = text.splitlines()
                assert lines[-1].startswith("facts: ") and lines[-2].startswith("phases: ")
                assert not measured or "2 x 8 x 8 x 8, float32" in lines

    def test_signals_are_passed_on(self, outcome: dict[str, Any]) -> None:
        for each in outcome["killed"]:
            if "suite" in phase_outcomes(each["lines"]):
                continue  # it had ended
            number = signal.Signals[each["signal"]]
            assert each["status"] == (-number if each["signal"] == "SIGKILL" else 128 + number)
            if each["signal"] != "SIGKILL":
                between = json.loads(each["lines"][-1])["fact"] == "phase"
                assert between or "interrupted" in phase_outcomes(each["lines"]).values()


class TestTrouble:
    def test_each_phase_loses_only_itself(self, outcome: dict[str, Any]) -> None:
        assert phase_outcomes(outcome["troubled"]["lines"]) == {
            "first": "done",
            "hang": "out of time",
            "crash": "killed by SIGSEGV",
            "leave": "exit status 7",
            "fail": "failed",
            "last": "done",
        }
        assert sum('"fact": "fine"' in line for line in outcome["troubled"]["lines"]) == 2

    def test_it_is_told(self, outcome: dict[str, Any]) -> None:
        assert outcome["troubled"]["status"] == 1
        text = outcome["troubled"]["output"]
        for line in (
            "TROUBLE a part: ValueError: which the phase survives",
            "TROUBLE fail: ValueError: which it does not",
            "TROUBLE phase: name crash; outcome killed by SIGSEGV",
        ):
            assert line in text

    def test_processes_side_by_side_have_outcomes_of_their_own(
        self, outcome: dict[str, Any]
    ) -> None:
        assert outcome["side_by_side"] == ["done", "exit status 5", "killed by SIGABRT"]

    def test_the_last_phases_have_time_left(self, outcome: dict[str, Any]) -> None:
        phases = [json.loads(line) for line in outcome["short_of_time"] if '"phase"' in line]
        assert [(each["name"], each["outcome"]) for each in phases] == [
            ("beside", "done"),
            ("long", "out of time"),
            ("last", "done"),
        ]
        assert phases[1]["seconds"] < 2.5

    def test_children_of_a_phase_end_with_it(self, outcome: dict[str, Any]) -> None:
        child = outcome["troubled"]["child"]
        if child is None:
            pytest.skip("the phase had no time to start one")
        state = Path(f"/proc/{child}/status")
        assert not state.exists() or "zombie" in state.read_text()


class TestPlan:
    def test_all_that_is_timed_is_estimated_to_fit_ten_minutes(self) -> None:
        """Phases that time nothing come last, and some time is kept for them."""
        last = [phase for phase in phases.PHASES if phase.kept]
        timed = phases.PHASES[: -len(last)]
        assert last == list(phases.PHASES[len(timed) :])
        assert len({phase.group for phase in last}) == 1
        kept = max(phase.kept for phase in last)
        assert sum(phase.estimate for phase in timed) + kept < 10 * 60

    def test_the_page_lists_phases_and_estimates(self) -> None:
        page = (ROOT / "docs" / "benchmarks.md").read_text()
        rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, re.MULTILINE)
        assert rows == [(phase.name, f"{phase.estimate:g}") for phase in phases.PHASES]

    def test_limits(self) -> None:
        for at, phase in enumerate(phases.PHASES):
            assert phase.least <= phase.estimate + 20 and phase.estimate < phase.limit
            assert phase.beside is None or phase.beside in phases.NAMES[:at]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--only", "smoke,nothing"], "--only: got 'nothing', expected some of environment, "),
            (["--minutes", "0"], "--minutes: got 0, expected more than 0"),
            (["--match", "k7-("], "--match: 'k7-(' is no regular expression: missing ), "),
        ],
    )
    def test_bad_words(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            visit.parse(words)
        assert message in capsys.readouterr().err

    def test_phases_keep_their_order(self) -> None:
        wanted = visit.parse(["--only", "ours,environment"]).wanted
        assert [phase.name for phase in wanted] == ["environment", "ours"]


class TestMatch:
    @pytest.mark.parametrize(
        ("match", "measured"),
        [
            ("", 6),
            ("forward-2x8x8x8-k3", 2),
            (r"gradient.*channels_last PyTorch as", 2),
            ("block|PyTorch$", 0),
        ],
    )
    def test_convolutions(self, match: str, measured: int, tmp_path: Path) -> None:
        each = Visit(tmp_path, dry_run=True, match=match)
        timings.ours(each)
        subjects = [fact["extra_info"]["subject"] for fact in each.facts.read()]
        assert len(subjects) == measured
        if "channels_last" in match:
            assert {subject["layout"] for subject in subjects} == {"channels_last"}

    @pytest.mark.parametrize(
        ("phase", "name", "who"),
        [
            (timings.blocks, "block training-2x8x8x8-k3-float32-contiguous", "PyTorch"),
            (timings.networks, "inference convmixer_8_1", "PyTorch, channels_last"),
            (timings.training, "training convmixer_8_1", "PyTorch"),
            (profiling.profile, "profile of training convmixer_8_1", "PyTorch, channels_last"),
        ],
    )
    def test_blocks_and_networks(
        self, phase: Callable[[Visit], None], name: str, who: str, tmp_path: Path
    ) -> None:
        each = Visit(tmp_path, dry_run=True, match=f"^{name} {who}$")
        phase(each)
        found = [fact for fact in each.facts.read() if fact["fact"] != "profile"]
        assert len(found) == 1
        assert who in str(found[0]) and name.split()[-1].split("-")[0] in str(found[0])


class TestFacts:
    def test_an_earlier_visit_is_put_aside(self, tmp_path: Path) -> None:
        path = tmp_path / "visit.jsonl"
        for text in ("first", "second"):
            path.write_text(text)
            visit.start_afresh(path)
        assert not path.exists()
        kept = [(tmp_path / f"visit-{number}.jsonl").read_text() for number in (1, 2)]
        assert kept == ["first", "second"]

    @pytest.mark.parametrize("line", ["{", "[]", '{"kind": 1}'])
    def test_a_file_of_something_else_is_refused(self, line: str, tmp_path: Path) -> None:
        path = tmp_path / "visit.jsonl"
        path.write_text(f'{{"fact": "begin"}}\n{line}\n')
        with pytest.raises(records.UsageError, match=r"visit.jsonl: line 2 is not "):
            records.load([path])

    def test_a_visit_without_a_machine_is_not_reported_on(self, tmp_path: Path) -> None:
        known = facts.Facts(tmp_path / "visit.jsonl")
        records.add_provenance(known, "visit", {"id": "0" * 40, "dirty": False})
        with pytest.raises(records.UsageError, match="before it knew on what machine"):
            records.load([known.path])
        assert visit.print_table(known.path) == 0

    @pytest.mark.parametrize(
        ("fact", "right"),
        [
            ({"fact": "wrong", "what": "a", "error": "b"}, False),
            ({"fact": "checked", "right": 3, "wrong": 1}, False),
            ({"fact": "checked", "right": 3, "wrong": 0}, True),
            ({"fact": "sanitizer", "clean": False}, False),
            ({"fact": "planted fault", "found": False, "right": False}, False),
            ({"fact": "suite", "part": "cuda", "passed": 5}, True),
            ({"fact": "phase", "name": "a", "outcome": "not begun", "seconds": 0}, True),
            ({"fact": "phase", "name": "a", "outcome": "killed by SIGSEGV", "seconds": 0}, False),
        ],
    )
    def test_trouble(self, fact: dict[str, Any], right: bool) -> None:
        assert checks.is_right(fact) is right
        assert bool(checks.trouble([fact])) is not right


def test_the_report_names_the_visit_of_each_failure(tmp_path: Path) -> None:
    paths = []
    for day in (1, 2):
        known = facts.Facts(tmp_path / f"{day}.jsonl")
        commit = {"id": f"{day}" * 40, "dirty": day == 2}
        known.add("begin", selection="visit", commit=commit, time=f"2026-01-0{day}T00:00:00")
        known.add("machine", device="a GPU", kind="cuda")
        known.add("failed", what=f"test {day}", error="it is off")
        paths.append(known.path)
    title, lines, *_ = checks.report(records.load(paths))
    assert title == "## Wrong or failed\n"
    assert lines == (
        "- 2026-01-02T00:00, commit 222222222222 with changes: test 2: it is off\n"
        "- 2026-01-01T00:00, commit 111111111111: test 1: it is off\n"
    )


def test_choices_are_told_with_their_circumstances() -> None:
    found = [
        {
            **{"fact": "micro", "what": "backward, fused", "shape": [2, 8, 8, 8]},
            **{"kernel_size": 3, "dtype": "float32", "layout": "contiguous", "microseconds": 4.5},
        },
        {"fact": "micro", "what": "mma", "headers": "micro", "k": 16, "chains": 1, "clocks": 33.0},
        {"fact": "phase", "name": "micro", "outcome": "done", "seconds": 1.0},
    ]
    assert checks.micro(found) == [
        ["backward, fused", "2x8x8x8, float32, contiguous, kernel size 3", "4.5 microseconds"],
        ["mma", "micro, k 16, chains 1", "33.0 clocks"],
    ]


def test_the_last_file_has_the_choice() -> None:
    fact = {"fact": "micro", "what": "backward, fused", "layout": "contiguous"}
    found = [fact | {"microseconds": 4.5}, fact | {"microseconds": 3.5}]
    assert checks.micro(found) == [["backward, fused", "contiguous", "3.5 microseconds"]]


def test_splits_are_a_row_for_each_task() -> None:
    fact = {
        **{"fact": "micro", "what": "splits", "pass": "forward", "layout": "contiguous"},
        **{"images": 64, "channels": 768, "plane": 14},
    }
    tried = [
        fact | {"splits": 2, "planned": False, "microseconds": 28.1},
        fact | {"splits": 8, "planned": True, "microseconds": 31.6},
        fact | {"splits": 3, "planned": False, "microseconds": 36.7},
    ]
    assert checks.micro(tried) == []
    assert checks.splits(tried)[1:] == [
        ["forward, contiguous, 64x768x14x14", "8: 31.6 µs", "2: 28.1 µs"]
    ]


def test_the_message_of_a_long_error_keeps_its_end() -> None:
    error = RuntimeError("output " * 1000 + "out of memory")
    text = facts.message(error)
    assert text.startswith("RuntimeError: ") and text.endswith("out of memory") and len(text) < 700


def test_pointwise_products_name_their_rates() -> None:
    product = {"fact": "micro", "at": 1.5, "what": "pointwise product", "shape": [64, 768, 32, 32]}
    product |= {"dtype": "float16", "way": "matrix @ rows", "library": "cublas"}
    assert checks.micro([product | {"microseconds": 123.4, "teraflops": 626.2}]) == [
        [
            *("pointwise product", "64x768x32x32, float16, matrix @ rows, cublas"),
            "123.4 microseconds, 626.2 teraflops",
        ]
    ]


def test_every_pointwise_product_is_that_of_the_model() -> None:
    features, weight = torch.randn(3, 5, 4, 2), torch.randn(5, 5, 1, 1)
    expected = F.conv2d(features, weight)
    rows = features.transpose(0, 1).reshape(5, 24)
    lines = features.permute(0, 2, 3, 1).reshape(24, 5)
    for way, run in micro.products(weight.flatten(1), torch.empty_like(rows)).items():
        result = run(rows if "rows" in way else lines)
        if result.shape == rows.shape:
            result = result.t()
        torch.testing.assert_close(result.view(3, 4, 2, 5).permute(0, 3, 1, 2), expected)


def test_the_preferred_library_is_put_back() -> None:
    preferred = torch.backends.cuda.preferred_blas_library
    before = preferred()
    with micro._preferred("cublaslt"):
        assert preferred() != before
    assert preferred() == before


class TestProfile:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("void depthwise::depthwise_forward_fused<__half, 9, 2, 4, true>(Args)", "depthwise"),
            ("void depthwise::(anonymous namespace)::add_splits<4>(Args)", "our other kernels"),
            ("nvjet_sm90_hsh_256x128_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
            ("sm90_xmma_gemm_f16f16_f16f32_f32_nn_n_tilesize64x128x64", "matrix products"),
            ("Memcpy DtoD (Device -> Device)", "copies"),
            (
                "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<"
                "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>>(int)",
                "copies",
            ),
            ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>", "optimizer"),
            ("void at::native::vectorized_elementwise_kernel<4, at::x>(int)", "other operations"),
        ],
    )
    def test_kinds_of_kernels(self, name: str, kind: str) -> None:
        assert profiling.kind(name) == kind

    def test_short_names_keep_what_tells_kernels_apart(self) -> None:
        name = "void depthwise::(anonymous namespace)::add_splits<at::Half, 4>(Arguments)"
        assert profiling.short_name(name) == "add_splits<Half, 4>(Arguments)"
        assert len(profiling.short_name("a" * 300)) == 100

    def test_rows(self) -> None:
        call = {"fact": "profile of a call", "at": 2.0, "network": "small", "way": "cuda"}
        first = {"training": False, "microseconds": 2500.0, "kinds": {"copies": 500.0}}
        second = {"training": True, "microseconds": 9000.0, "kinds": {"depthwise": 9000.0}}
        assert checks.profiles([call | first, call | second]) == [
            ["milliseconds of kernels", "copies", "depthwise", "all"],
            ["small, cuda, inference", "0.50", "-", "2.50"],
            ["small, cuda, training", "-", "9.00", "9.00"],
        ]
        assert checks.profiles([]) == []


class TestCommit:
    def test_of_a_checkout(self) -> None:
        assert re.fullmatch(r"[0-9a-f]{40}|unknown", machine.commit()["id"])

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0123456789abcdef\n", {"id": "0123456789abcdef", "dirty": False}),
            ("0123456789abcdef-dirty\n", {"id": "0123456789abcdef", "dirty": True}),
            (None, {"id": "unknown", "dirty": False}),
        ],
    )
    def test_without_history(
        self, text: str | None, expected: dict[str, Any], tmp_path: Path
    ) -> None:
        file = tmp_path / "commit"
        if text is not None:
            file.write_text(text)
        assert machine.commit(tmp_path, file) == expected

    def test_history_that_git_cannot_read(self, tmp_path: Path) -> None:
        """A worktree has its repository elsewhere, where it may be missing."""
        (tmp_path / ".git").write_text("gitdir: /nowhere\n")
        (tmp_path / "commit").write_text("0123\n")
        assert machine.commit(tmp_path, tmp_path / "commit")["id"] == "0123"

    def test_a_repository_made_of_a_copy_means_nothing(self, tmp_path: Path) -> None:
        """It knows its own commits and not the one that the files are of."""
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "copied"]):
            subprocess.run([*git, *words], check=True)
        own = subprocess.run(
            [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        file = tmp_path / "commit"
        assert machine.commit(tmp_path, file) == {"id": own, "dirty": False}
        file.write_text(f"{'0123' * 10}-dirty\n")
        assert machine.commit(tmp_path, file) == {"id": "0123" * 10, "dirty": True}
        file.write_text(f"{own}-dirty\n")  # of this repository, which knows better
        assert machine.commit(tmp_path, file) == {"id": own, "dirty": False}


class TestSources:
    @pytest.mark.parametrize("variant", source_variants.VARIANTS, ids=lambda each: each.label)
    def test_variants_change_what_they_say(
        self, variant: source_variants.Variant, tmp_path: Path
    ) -> None:
        csrc = ROOT / "csrc"
        copied = source_variants.write(variant, csrc, tmp_path)
        headers = [path.relative_to(copied) for path in copied.rglob("*") if path.is_file()]
        changed = [
            path.as_posix()
            for path in headers
            if (copied / path).read_text() != (csrc / path).read_text()
        ]
        assert changed == [variant.file]

    def test_sanitizers_know_the_kernels_of_triton(self) -> None:
        sources = (ROOT / "convmixer_kernels" / "backends" / "triton").rglob("*.py")
        launched = {
            name
            for path in sources
            for name in re.findall(r"@triton\.jit[^\n]*\ndef (\w+_kernel)\(", path.read_text())
        }
        assert launched
        unknown = [
            name
            for name in launched
            if not any(part in name for part in sanitizers.KERNELS["triton"])
        ]
        assert unknown == []

    def test_sanitizers_know_the_kernels_of_cuda(self) -> None:
        """All of them are in the namespace whose name the filter looks for."""
        for path in (
            *(ROOT / "csrc").glob("kernels/*.cu*"),
            ROOT / "benchmarks" / "phases" / "planted_faults.cu",
        ):
            text = path.read_text()
            for kernel in re.finditer(r"__global__", text):
                assert "namespace depthwise {" in text[: kernel.start()], path.name

    def test_every_fault_is_planted(self) -> None:
        text = (ROOT / "benchmarks" / "phases" / "planted_faults.cu").read_text()
        for faults in sanitizers.PLANTED.values():
            for fault in faults:
                assert f'"{fault}"' in text and f"Fault::{fault}" in text

    def test_tests_run_without_rounded_factors(self) -> None:
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


class TestTools:
    def test_failures_of_the_suite_are_facts_at_once(self, tmp_path: Path) -> None:
        """The limit of the phase is likely to end it."""
        known = facts.Facts(tmp_path / "visit.jsonl")

        def lines() -> Iterator[str]:
            yield "[gw0] [  1%] PASSED tests/test_a.py::test_x[1] \n"
            yield "REASON tests/test_a.py::test_y[2-a b]\tValueError: it is FAILED\n"
            yield "[gw1] [  2%] FAILED tests/test_a.py::test_y[2-a b] \n"
            (fact,) = known.read()
            assert fact["what"] == "test tests/test_a.py::test_y[2-a b]"
            assert fact["error"] == "ValueError: it is FAILED"
            assert not checks.is_right(fact)
            yield "[gw1] [  3%] SKIPPED tests/test_a.py::test_z \n"
            yield "tests/test_b.py::test_w PASSED                   [ 4%]\n"
            yield "tests/test_b.py::test_v ERROR                    [ 5%]\n"
            yield "E   AssertionError\n"

        with (tmp_path / "log").open("w") as log:
            suite.count("cuda", lines(), known, log)
        assert facts.fields(known.read()[-1]) == {
            **{"part": "cuda", "ended": True},
            **{"passed": 2, "failed": 1, "skipped": 1, "error": 1},
        }
        assert (tmp_path / "log").read_text().count("\n") == 7

    def test_failures_of_the_suite_have_reasons(self, tmp_path: Path) -> None:
        (tmp_path / "test_a.py").write_text(
            "import pytest\n"
            "@pytest.fixture\n"
            "def broken(): raise RuntimeError('no\\nfixture')\n"
            "@pytest.mark.parametrize('x', ['a b'])\n"
            "def test_f(x): raise ValueError('first\\nsecond')\n"
            "def test_e(broken): pass\n"
            "def test_p(): pass\n"
        )
        command = [sys.executable, "-m", "pytest", "-v", *suite.PLUGINS, "-pno:xdist", "test_a.py"]
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        known = facts.Facts(tmp_path / "visit.jsonl")
        with (tmp_path / "log").open("w") as log:
            suite.count("cuda", run.stdout.splitlines(keepends=True), known, log)
        *failures, counts = known.read()
        assert {fact["what"]: fact["error"] for fact in failures} == {
            "test test_a.py::test_f[a b]": "ValueError: first second",
            "test test_a.py::test_e": "RuntimeError: no fixture",
        }
        assert (counts["passed"], counts["failed"], counts["error"]) == (1, 1, 1), run.stdout

    def test_counters(self) -> None:
        output = (
            "==PROF== Connected\n"
            '"ID","Kernel Name","gpu__time_duration.sum","lts__t_sector_hit_rate.pct","other"\n'
            '"","","ns","%",""\n'
            '"0","void depthwise_forward<half, 9>(ForwardArguments)","108,992","n/a","1"\n'
        )
        assert counters.rows(output) == [
            {"kernel": "depthwise_forward<half, 9>", "nanoseconds": 108992, "l2_hit_percent": None}
        ]
        assert counters.rows("==ERROR== no permission\n") == []
        found = [{"fact": "counters", "at": 1.0, **row} for row in counters.rows(output)]
        assert checks.counters(found) == [
            ["kernel", "l2 hit percent", "nanoseconds"],
            ["depthwise_forward<half, 9>", "-", "108,992"],
        ]

    def test_the_suite_runs_marked_files(self) -> None:
        names = {Path(path).name for path in suite.gpu_tests()}
        assert "test_cuda_safety.py" in names and "test_packaging.py" not in names


def test_a_report_needs_no_installed_packages(tmp_path: Path) -> None:
    """The report runs where the packages are not installed, as after a failed build."""
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\n"
        "sys.meta_path = [each for each in sys.meta_path if 'editable' not in repr(each)]\n"
        f"sys.path = [{str(ROOT / 'benchmarks')!r}] + [p for p in sys.path if 'python' in p]\n"
        f"sys.argv = ['report', {str(tmp_path / 'none.jsonl')!r}]\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'report.py')!r}, run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert "none.jsonl: there is no such file" in run.stderr
