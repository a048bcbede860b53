"""The preferences of `auto` that follow from made-up measurements."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import preferences
from benchmarks.lib import facts, shapes
from benchmarks.lib.measurement import Measurement
from benchmarks.lib.shapes import Case
from benchmarks.reports import records
from convmixer_kernels import architectures, preference
from convmixer_kernels.preference import Plane, Problem

# Relative times of forward, input gradient and weight gradient.
Passes = tuple[float, float, float]

USUAL = "cuda triton torch"


def rows(plane: int, layout: str = "contiguous", **times: Passes) -> list[Measurement]:
    """Make the records of one shape; "torch" stands for PyTorch."""
    found = []
    for name, passes in times.items():
        peer = {"torch": "PyTorch"}.get(name, name)
        for operation, seconds in zip(shapes.OPERATIONS, passes, strict=True):
            case = Case(operation, 64, 768, plane, 9, layout=layout)
            subject = {**case.subject, "peer": peer}
            info = {"is_pytorch": name == "torch"}
            found.append(Measurement("depthwise", subject, [1e-4 * seconds] * 2, case.work, info))
    return found


def stored(folder: Path, measurements: list[Measurement], kind: str = "cuda") -> Path:
    """A file as a visit leaves it."""
    written = facts.Facts(folder / "visit.jsonl")
    records.add_provenance(written, "visit", {"id": "0123456789abcdef", "dirty": False})
    written.add("machine", device="GPU of a test", kind=kind, capability=[9, 0])
    for each in measurements:
        written.add("measured", extra_info=each.extra_info, stats=each.stats)
    return written.path


@pytest.mark.parametrize(
    ("times", "order"),
    [
        # The first stays unless another is faster by more than 2 %.
        ({"cuda": (1, 1, 1), "triton": (0.99, 0.99, 0.99), "torch": (5, 5, 5)}, USUAL),
        ({"cuda": (1, 1, 1), "triton": (0.9, 0.9, 0.9), "torch": (5, 5, 5)}, "triton cuda torch"),
        # It must not be slower at the forward pass, which is all of inference.
        ({"cuda": (1, 1, 2), "triton": (1.1, 1, 0.5), "torch": (5, 5, 5)}, USUAL),
        ({"cuda": (1, 1, 2), "triton": (1.01, 1, 0.5), "torch": (5, 5, 5)}, "triton cuda torch"),
        # A kernel may lose 2 % to PyTorch, forward and in all passes together, and no more.
        ({"cuda": (1.015, 1, 1), "torch": (1, 1, 1)}, USUAL),
        ({"cuda": (0.5, 1, 1.2), "torch": (1, 1, 1)}, USUAL),
        (
            {"cuda": (0.5, 1, 1), "triton": (1.03, 0.1, 0.1), "torch": (1, 1, 1)},
            "cuda torch triton",
        ),
        ({"cuda": (0.5, 1, 1), "triton": (0.5, 1, 2), "torch": (1, 1, 1)}, "cuda torch triton"),
        ({"cuda": (2, 2, 2), "triton": (0.9, 0.9, 0.9), "torch": (1, 1, 1)}, "triton torch cuda"),
        ({"cuda": (3, 3, 3), "triton": (2, 2, 2), "torch": (1, 1, 1)}, "torch cuda triton"),
        # A kernel that was not measured stays behind the one that it usually follows.
        ({"cuda": (1.03, 0.1, 0.1), "torch": (1, 1, 1)}, "torch cuda triton"),
        ({"triton": (0.5, 0.5, 0.5), "torch": (1, 1, 1)}, USUAL),
        ({"triton": (2, 2, 2), "torch": (1, 1, 1)}, "cuda torch triton"),
    ],
)
def test_the_order_that_follows(times: dict[str, Passes], order: str, tmp_path: Path) -> None:
    run = records.load([stored(tmp_path, rows(16, **times))])
    (choice,) = preferences.choices(run)
    assert " ".join(choice.order) == order


def test_every_shape_of_a_problem_counts(tmp_path: Path) -> None:
    """Faster on large tensors, slower on a single image."""
    large = rows(16, cuda=(1, 1, 1), torch=(9, 9, 9))
    small = [
        replace(each, subject={**each.subject, "images": 1})
        for each in rows(16, cuda=(1, 1, 1), torch=(0.5, 0.5, 0.5))
    ]
    (choice,) = preferences.choices(records.load([stored(tmp_path, large + small)]))
    assert choice.order == ("torch", "cuda", "triton")


def test_a_shape_without_pytorch_counts_for_nothing(tmp_path: Path) -> None:
    """Triton, faster than CUDA there alone, is as one that was not measured."""
    small = [
        replace(each, subject={**each.subject, "images": 1})
        for each in rows(16, cuda=(1, 1, 1), torch=(2, 2, 2))
    ]
    large = rows(16, cuda=(3, 3, 3), triton=(1, 1, 1))
    (choice,) = preferences.choices(records.load([stored(tmp_path, small + large)]))
    assert choice.order == ("cuda", "triton", "torch") and set(choice.times) == {"cuda", "torch"}
    assert choice.row.startswith("1x768x16x16 ")
    (tmp_path / "without").mkdir()
    assert preferences.choices(records.load([stored(tmp_path / "without", large)])) == []


def test_a_pass_that_one_lacks_is_compared_for_nobody(tmp_path: Path) -> None:
    measured = rows(16, cuda=(1, 1, 1), triton=(1.5, 1, 1), torch=(2, 2, 2))
    without = [
        each
        for each in measured
        if (each.subject["peer"], each.subject["operation"]) != ("triton", "weight_gradient")
    ]
    (choice,) = preferences.choices(records.load([stored(tmp_path, without)]))
    assert choice.order == ("cuda", "triton", "torch")


def test_wrong_results_count_for_nothing(tmp_path: Path) -> None:
    measured = rows(16, cuda=(1, 1, 1), torch=(0.1, 0.1, 0.1))
    for each in measured:
        if each.subject["peer"] == "PyTorch":
            each.info["wrong"] = "off by 3"
    assert preferences.choices(records.load([stored(tmp_path, measured)])) == []


def test_auto_follows_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command changes the module; planes with one answer are one range, others are apart."""
    measured = [
        *rows(7, cuda=(2, 2, 2), triton=(3, 3, 3), torch=(1, 1, 1)),
        *rows(14, cuda=(2, 2, 2), triton=(3, 3, 3), torch=(1, 1, 1)),
        *rows(32, cuda=(1, 1, 1), triton=(3, 3, 3), torch=(9, 9, 9)),
        *rows(56, cuda=(2, 2, 2), triton=(1, 1, 1), torch=(9, 9, 9)),
        *rows(7, "channels_last", cuda=(1, 1, 1), torch=(9, 9, 9)),
        *rows(14, "channels_last", cuda=(1, 1, 1), triton=(3, 3, 3), torch=(2, 2, 2)),
    ]
    path = stored(tmp_path, measured)
    module = tmp_path / "preference.py"
    module.write_text(preferences.PREFERENCES.read_text())
    monkeypatch.setattr(preferences, "PREFERENCES", module)
    assert preferences.main([str(path), "--write"]) == 0
    # Its entries are of this module's own class, which the package's function takes as well.
    written = types.ModuleType("written")
    monkeypatch.setitem(sys.modules, "written", written)
    exec(compile(module.read_text(), str(module), "exec"), vars(written))
    monkeypatch.setattr(preference, "MEASURED", written.MEASURED)
    hopper = architectures.find((9, 0))

    def order(plane: int, layout: preference.Layout, dtype: torch.dtype = torch.float16) -> str:
        problem = Problem(9, dtype, Plane(layout, plane, plane))
        (found,) = preference.possible(hopper, problem)
        return " ".join(found.order)

    assert [order(plane, "planar") for plane in (7, 10, 14)] == ["torch cuda triton"] * 3
    assert [order(plane, "planar") for plane in (16, 32, 40)] == [USUAL] * 3
    assert order(56, "planar") == "triton cuda torch"
    assert order(7, "channels_last") == USUAL
    assert order(14, "channels_last") == "cuda torch triton"
    assert order(7, "planar", torch.bfloat16) == USUAL  # nothing was measured of it


def test_the_rows_stand_beside_it_and_lines_are_short(tmp_path: Path) -> None:
    run = records.load([stored(tmp_path, rows(7, cuda=(2, 2, 2), torch=(1, 1, 1)))])
    text = preferences.source(preferences.entries(run, preferences.choices(run)))
    joined = " ".join(line.strip().strip('"').strip() for line in text.splitlines())
    assert "64x768x7x7 forward and all passes: cuda 200 µs and 600 µs, torch 100 µs" in joined
    assert "GPU of a test, commit 0123456789ab" in joined
    assert all(len(line) <= 100 for line in text.splitlines())


def test_nothing_is_written_where_the_usual_order_is_best(tmp_path: Path) -> None:
    run = records.load([stored(tmp_path, rows(7, cuda=(1, 1, 1), torch=(9, 9, 9)))])
    assert preferences.entries(run, preferences.choices(run)) == []
    assert preferences.source([]) == "MEASURED: tuple[Measured, ...] = ()\n"


def test_of_a_cpu_nothing_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path, rows(7, cuda=(1, 1, 1), torch=(9, 9, 9)), kind="cpu")
    assert preferences.main([str(path)]) == 2
    assert "measured on a CPU" in capsys.readouterr().err


def test_the_module_has_one_place_for_them(tmp_path: Path) -> None:
    text = preferences.PREFERENCES.read_text()
    assert text.count(preferences.BEGIN) == text.count(preferences.END) == 1
    (tmp_path / "other.py").write_text("nothing")
    with pytest.raises(records.UsageError, match="there is no # measured:begin"):
        preferences.write("", tmp_path / "other.py")
