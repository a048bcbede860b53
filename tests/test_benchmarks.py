"""The arithmetic, the networks and the reports of benchmarks/, on made-up measurements."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import comparing
import formats
import measure
import networks
import peers
import records
import report
import shapes
import tables
import ways
from arithmetic import Ceilings, Work, change, depthwise_work, noise, speedup
from shapes import Case

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = Ceilings(bytes_per_second=4e12, operations_per_second=6e14, dtype="float16")
SYNTHETIC = "Synthetic GPU of a test"


def entry(kind: str, subject: dict[str, Any], median: float, **info: Any) -> dict[str, Any]:
    stats = {"median": median, "mean": median, "iqr": 0.01 * median, "rounds": 5}
    return {"extra_info": {"kind": kind, "subject": subject, **info}, "stats": stats}


def depthwise(case: Case, peer: str, median: float) -> dict[str, Any]:
    subject = {
        "operation": case.operation,
        "images": case.images,
        "channels": case.channels,
        "plane": case.plane,
        "kernel_size": case.kernel_size,
        "dtype": case.dtype,
        "layout": case.layout,
        "peer": peer,
    }
    return entry(
        "depthwise",
        subject,
        median,
        bytes=case.work.bytes,
        operations=case.work.operations,
        share_of_copy=CEILINGS.share_of_copy(case.work, median),
        is_pytorch=peer not in tables.KERNELS,
        kernels=["made_up_kernel<a | b>"] if peer == "PyTorch" else [],
    )


def network(kind: str, name: str, way: str, speed: float, **info: Any) -> dict[str, Any]:
    subject = {"network": name, "way": way, "batch": 64, "image_size": 224, "dtype": "float16"}
    is_pytorch = way.startswith(("PyTorch", "torch"))
    more = {"images_per_second": speed, "is_pytorch": is_pytorch, "host_share": 0.1, **info}
    return entry(kind, subject, 64 / speed, **more)


def input_size(kernel_size: int, size: int, way: str, seconds: float) -> dict[str, Any]:
    subject = {
        "network": "ConvMixer-768/32",
        "kernel_size": kernel_size,
        "size": size,
        "way": way,
        "batch": 32,
        "dtype": "float16",
    }
    return entry("input_size", subject, seconds, is_pytorch=way.startswith("PyTorch"))


def synthetic_kernels() -> list[dict[str, Any]]:
    """PyTorch grows with k^2, the kernels stay near a copy; all of it made up."""
    found = []
    for case in shapes.quick_cases():
        floor, layout = CEILINGS.floor_seconds(case.work), case.layout == "channels_last"
        small = 1 + 40 / case.plane**1.5
        slow = {"forward": 1.0, "input_gradient": 1.3, "weight_gradient": 3.0}[case.operation]
        pytorch = floor * slow * (0.5 + case.kernel_size**2 / (16 if layout else 12))
        found += [
            depthwise(case, "PyTorch", pytorch),
            depthwise(case, "cuda", floor * (1.08 + 0.1 * layout) * small),
            depthwise(case, "triton", floor * (1.25 + 0.02 * case.kernel_size) * small),
        ]
    return found


def synthetic_content() -> dict[str, Any]:
    """What a run on a GPU would leave, with made-up numbers and a device that says so."""
    benchmarks = synthetic_kernels()
    for row in networks.rows():
        speed = 8.0 * row.images_per_second
        benchmarks.append(network("inference", row.network, "PyTorch", speed))
        if row.network.startswith("convmixer"):
            share = 0.95 if row.network == "convmixer_1536_20" else 0.1
            ours = network("inference", row.network, "cuda", 3 * speed, host_share=share)
            benchmarks.append(ours)
            benchmarks.append(network("inference", row.network, "triton", 2 * speed))
    for way, speed in (("PyTorch", 500.0), ("cuda, channels_last", 900.0)):
        peak = int(speed * 2**25)
        benchmarks.append(
            network("training", "convmixer_1536_20", way, speed, peak_memory_bytes=peak)
        )
    for kernel_size in shapes.KERNEL_SIZES:
        for size in (112, 224, 336, 448):
            seconds = 2e-7 * size**2
            slow = seconds * (1 + kernel_size**2 / 20)
            benchmarks.append(input_size(kernel_size, size, "PyTorch", slow))
            benchmarks.append(input_size(kernel_size, size, "cuda", seconds))
    unique = {
        json.dumps(each["extra_info"]["subject"]) + each["extra_info"]["kind"]: each
        for each in benchmarks
    }
    return {
        "machine_info": {
            "device": SYNTHETIC,
            "kind": "cuda",
            "driver": "0",
            "cuda": "0",
            "torch": "0",
            "triton": "0",
            "cudnn": None,
            "timm": "0",
            "python": "0",
            "threads": 1,
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": list(unique.values()),
        "datetime": "2000-01-01T00:00:00+00:00",
        "selection": "quick",
        "skipped": {"a reason": 3},
        "ceilings": vars(CEILINGS),
    }


def store(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("synthetic") / "run.json", synthetic_content())


@pytest.fixture(scope="module")
def run(stored: Path) -> records.Run:
    return records.load([stored])


class TestArithmetic:
    @pytest.mark.parametrize("kernel_size", [1, 3, 8, 15])
    def test_counts_the_products_of_a_convolution_of_ones(self, kernel_size: int) -> None:
        """Each output of a convolution of ones is its number of products inside the image."""
        before, after = (kernel_size - 1) // 2, kernel_size // 2
        image = F.pad(torch.ones(1, 1, 5, 9), (before, after, before, after))
        products = F.conv2d(image, torch.ones(1, 1, kernel_size, kernel_size)).sum().item()
        assert depthwise_work(2, 3, 5, 9, kernel_size, 2).operations == 2 * 2 * 3 * products

    def test_counts_two_tensors_and_the_filters(self) -> None:
        reference = Case("forward", 64, 1536, 32, 9)
        assert reference.work.bytes == 2 * (2 * 64 * 1536 * 32 * 32 + 1536 * 81)
        assert reference.work.intensity == pytest.approx(35.1, abs=0.1)

    def test_the_floor_is_the_longer_of_moving_and_computing(self) -> None:
        ceilings = Ceilings(100.0, 1000.0, "float16")
        assert ceilings.floor_seconds(Work(bytes=200, operations=500)) == 2.0
        assert ceilings.floor_seconds(Work(bytes=200, operations=5000)) == 5.0
        assert ceilings.share_of_copy(Work(bytes=200, operations=5000), 5.0) == 0.4

    def test_ratios(self) -> None:
        assert speedup(2.0, baseline_seconds=6.0) == 3.0
        assert noise(10.0, 2.0) == 0.2

    @pytest.mark.parametrize(
        ("after", "noises", "beyond"),
        [(1.02, (0.0, 0.0), False), (1.04, (0.0, 0.0), True), (1.04, (0.03, 0.02), False),
         (0.90, (0.03, 0.02), True), (0.99, (0.0, 0.0), False)],
    )  # fmt: skip
    def test_changes(self, after: float, noises: tuple[float, float], beyond: bool) -> None:
        assert change(1.0, after, noises).beyond_noise is beyond


class TestSelection:
    def test_full_list_is_every_combination_once(self) -> None:
        assert len(set(shapes.FULL.cases)) == len(shapes.FULL.cases) == 2 * 3 * 9 * 7 * 2 * 2 * 3

    def test_quick_list_is_a_part_that_begins_with_the_reference(self) -> None:
        assert set(shapes.QUICK.cases) <= set(shapes.FULL.cases)
        assert len(set(shapes.QUICK.cases)) == len(shapes.QUICK.cases)
        assert shapes.QUICK.cases[0].is_reference

    def test_torch_compile_is_tried_on_one_kernel_size_in_the_quick_list(self) -> None:
        quick, full = (
            {
                case.kernel_size
                for case in selection.cases
                if set(peers.COMPILED) & set(peers.peers(case, selection))
            }
            for selection in (shapes.QUICK, shapes.FULL)
        )
        assert (quick, full) == ({9}, set(shapes.KERNEL_SIZES))

    def test_without_a_gpu_nothing_else_is_measured(self) -> None:
        assert shapes.selection(has_gpu=False, quick=False) is shapes.CPU
        assert shapes.selection(has_gpu=True, quick=True) is shapes.QUICK


class TestMeasuring:
    def test_the_clock_plays_the_samples(self) -> None:
        """As pytest-benchmark does: the difference of two looks at the clock around each call."""
        clock, seen = measure.RecordedClock(), []

        class Benchmark:
            def pedantic(self, target: Any, rounds: int) -> None:
                for _ in range(rounds):
                    start = clock()
                    target()
                    seen.append(clock() - start)

        clock.play(Benchmark(), [3.0, 1.0, 2.0])
        assert seen == [3.0, 1.0, 2.0]

    def test_a_rounded_result_passes(self) -> None:
        exact = torch.randn(4, 5, dtype=torch.float64)
        assert measure.error_of(exact.half(), exact, terms=9, dtype=torch.float16) is None

    @pytest.mark.parametrize("wrong", [float("nan"), 0.0])
    def test_one_wrong_element_does_not(self, wrong: float) -> None:
        exact = 1 + torch.rand(4, 5, dtype=torch.float64)
        actual = exact.half()
        actual[2, 3] = wrong
        assert "off by" in (measure.error_of(actual, exact, 9, torch.float16) or "")

    def test_a_wrong_shape_does_not(self) -> None:
        error = measure.error_of(torch.ones(2), torch.ones(3).double(), 1, torch.float32)
        assert error == "shape (2,), expected (3,)"

    def test_relative_error(self) -> None:
        zeros, ones = torch.zeros(4), torch.ones(4)
        assert measure.relative_error(1.5 * ones, ones) == pytest.approx(0.5)
        assert measure.relative_error(zeros, zeros) == 0.0
        assert measure.relative_error(ones, zeros) > 1
        assert not measure.relative_error(ones * torch.nan, ones) <= 1

    def test_small_inputs_rotate_through_more_than_the_cache(self) -> None:
        cpu = torch.device("cpu")
        assert measure.buffer_sets(1 << 20, cpu) * (1 << 20) >= 32 << 20
        assert measure.buffer_sets(1 << 40, cpu) == 2

    def test_every_call_is_timed(self) -> None:
        calls: list[int] = []
        steps = [lambda each=each: calls.append(each) for each in range(3)]
        samples = measure.kernel_samples(steps, torch.device("cpu"))
        assert set(calls) == {0, 1, 2}
        assert len(samples) >= 5
        assert min(samples) > 0

    def test_batches_after_warming_up(self) -> None:
        calls: list[None] = []
        samples, host_share = measure.batch_samples(
            lambda: calls.append(None), 4, torch.device("cpu"), warm_up=2
        )
        assert (len(samples), len(calls), host_share) == (4, 6, None)

    def test_names_of_operators(self) -> None:
        left = torch.randn(64, 64)
        names = measure.kernels_that_ran(lambda: left @ left, torch.device("cpu"))
        assert "aten::mm" in names


class TestPeers:
    @pytest.mark.parametrize(
        ("peer", "operation"),
        [*((peers.EAGER, operation) for operation in shapes.OPERATIONS), (peers.PADDED, "forward")],
    )
    def test_computes_what_autograd_does(self, peer: peers.Peer, operation: str) -> None:
        input = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
        output = F.conv2d(input, weight, padding="same", groups=3)
        grad_output = torch.randn_like(output)
        grads = torch.autograd.grad(output, [input, weight], grad_output)
        expected = dict(zip(shapes.OPERATIONS, (output, *grads), strict=True))[operation]
        actual = peer.run(operation)(input.detach(), grad_output, weight.detach())
        torch.testing.assert_close(actual, expected.detach())

    def test_the_kernels_are_not_timed_without_a_gpu(self) -> None:
        for kernel in peers.KERNELS:
            assert "needs a GPU" in (kernel.unavailable(torch.device("cpu")) or "")

    def test_only_optional_ways_may_fail(self) -> None:
        for peer in peers.COMPILED:
            with pytest.raises(pytest.skip.Exception, match=r"fails: ValueError: broken"):  # noqa: SIM117
                with peer.settings():
                    raise ValueError("broken\nin detail")
        for peer in (peers.EAGER, peers.PADDED, *peers.KERNELS):
            with pytest.raises(ValueError, match="broken"), peer.settings():
                raise ValueError("broken")

    def test_the_switch_of_cudnn_is_tried_where_it_exists(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not hasattr(torch.backends.cudnn, "depthwise_kernel"):
            assert peers.switched() == ()
        monkeypatch.setattr(torch.backends.cudnn, "depthwise_kernel", "auto", raising=False)
        values = []
        for peer in peers.switched():
            with peer.settings():
                values.append(torch.backends.cudnn.depthwise_kernel)
        assert values == ["native", "cudnn"]
        assert torch.backends.cudnn.depthwise_kernel == "auto"


class TestNetworks:
    def test_tables_have_as_many_rows_as_in_the_paper(self) -> None:
        numbers = [row.table for row in networks.rows()]
        assert {table: numbers.count(table) for table in (1, 2, 3, 5)} == {1: 6, 2: 33, 3: 5, 5: 7}

    def test_parameters_are_those_of_the_paper_or_explained(self) -> None:
        built = {each.name: networks.parameters(each) for each in networks.networks((1, 2, 3, 5))}
        unexplained = [
            (row.label, built[row.network], row.parameters)
            for row in networks.rows()
            if row.parameters is not None
            and not _rounds_to(built[row.network], row.parameters)
            and row.network not in networks.PARAMETER_NOTES
        ]
        assert unexplained == []
        needless = [
            row.label
            for row in networks.rows()
            if row.network in networks.PARAMETER_NOTES
            and row.parameters is not None
            and _rounds_to(built[row.network], row.parameters)
        ]
        assert needless == []

    @pytest.mark.parametrize("name", ["isotropic_mobilenetv3_p16", "resmlp_s12_p8"])
    def test_networks_built_here_classify(self, name: str) -> None:
        found = {each.name: each for each in networks.networks((2,))}
        with torch.device("meta"):
            model = found[name].build()
            assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)

    def test_pytorch_runs_its_own_convolutions(self) -> None:
        """And the kernels the same parameters, whichever is asked for first."""
        torch.manual_seed(0)
        model = networks.cpu_networks()[0].build().eval()
        images = torch.randn(2, 3, 28, 28)
        expected = model(images)
        weights = [each for each in model.parameters()]
        for implementation, kind in (("torch", "Conv2d"), ("cuda", "DepthwiseConv2d")) * 2:
            ways.Way(implementation, "contiguous").prepare(model)
            layers = [each for each in model.modules() if getattr(each, "groups", 1) > 1]
            assert {type(layer).__name__ for layer in layers} == {kind}
            assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
        run = ways.Way("torch", "channels_last").prepare(model)
        torch.testing.assert_close(run(images), expected)


def _rounds_to(parameters: int, printed: float) -> bool:
    decimals = len(str(printed).partition(".")[2])
    return abs(parameters / 1e6 - printed) <= 0.5 * 10**-decimals


class TestRecords:
    def test_later_files_win(self, tmp_path: Path) -> None:
        case = Case("forward", 1, 8, 16, 3)
        paths = []
        for number, median in enumerate((5e-5, 4e-5)):
            content = {**synthetic_content(), "benchmarks": [depthwise(case, "cuda", median)]}
            paths.append(store(tmp_path / f"{number}.json", content))
        (merged,) = records.load(paths).records
        assert merged.median == 4e-5

    def test_results_of_two_machines_are_not_mixed(self, stored: Path, tmp_path: Path) -> None:
        content = synthetic_content()
        content["machine_info"]["device"] = "another"
        other = store(tmp_path / "other.json", content)
        with pytest.raises(
            records.UsageError, match=r"other.json: measured on another, .*run.json"
        ):
            records.load([stored, other])

    @pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
    def test_says_what_is_wrong_with_a_file(self, text: str | None, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(
            records.UsageError, match=r"run.json: (there is no|not JSON|not written)"
        ):
            records.load([path])

    def test_ratio_is_to_the_best_of_pytorch_in_any_layout(self) -> None:
        contiguous = Case("forward", 1, 8, 16, 3)
        other = Case("forward", 1, 8, 16, 3, layout="channels_last")
        smaller = Case("forward", 1, 8, 7, 3)
        entries = [
            depthwise(contiguous, "PyTorch", 4e-5),
            depthwise(other, "PyTorch", 2e-5),
            depthwise(smaller, "PyTorch", 1e-6),
            depthwise(contiguous, "cuda", 1e-5),
        ]
        records.add_ratios(entries)
        assert entries[-1]["extra_info"]["speedup_over_best_pytorch"] == pytest.approx(2.0)
        assert entries[-1]["extra_info"]["best_pytorch"] == "PyTorch, channels_last"

    def test_networks_are_judged_by_their_mean_and_kernels_by_their_median(self) -> None:
        kernel = depthwise(Case("forward", 1, 8, 16, 3), "cuda", 1.0)
        batches = network("inference", "resnet50", "PyTorch", 64.0)
        for each in (kernel, batches):
            each["stats"] |= {"median": 1.0, "mean": 2.0}
        assert [records.record(each).seconds for each in (kernel, batches)] == [1.0, 2.0]


class TestTables:
    def test_numbers(self) -> None:
        assert [formats.seconds(x) for x in (9.42e-5, 0.0012345, 2.0)] == [
            "94.2 µs",
            "1.23 ms",
            "2.00 s",
        ]
        assert [formats.digits(x) for x in (9.996, 99.96, 12345.6)] == ["10.0", "100", "12,346"]

    def test_kernel_cells_have_time_share_and_ratio(self, run: records.Run) -> None:
        found = [each for each in run.of("depthwise") if each.subject["kernel_size"] == 9]
        wanted = {"images": 64, "channels": 1536, "plane": 32, "dtype": "float16"}
        found = tables.matching(found, {**wanted, "operation": "forward"})
        (ours,) = tables.matching(found, {"peer": "cuda", "layout": "contiguous"})
        best = records.best_pytorch(found)[ours.task]
        cell = (
            f"{formats.seconds(ours.median)} ({100 * ours.info['share_of_copy']:.0f} %) "
            f"**{best.median / ours.median:.2f}x**"
        )
        table = tables.sweep_table(run.of("depthwise"), "forward", "kernel_size", "k")
        (line,) = [line for line in table.splitlines() if line.startswith("| 9 |")]
        assert cell in line
        assert "PyTorch, channels_last" in line

    def test_what_was_not_measured_says_so(self, run: records.Run) -> None:
        without = [each for each in run.of("depthwise") if each.subject["peer"] != "triton"]
        table = tables.sweep_table(without, "forward", "kernel_size", "k")
        assert table.count(formats.NOT_MEASURED) == 2 * len(shapes.KERNEL_SIZES)
        assert "triton, contiguous" in table.replace("`", "")

    def test_networks_stand_beside_the_paper(self, run: records.Run) -> None:
        rows = [row for row in networks.rows() if row.table == 1]
        table = tables.network_table(run, rows)
        # 8 times the paper's 134 images/s; the record of `cuda` says that the host was the limit.
        expected = "| 134 | 1,072 PyTorch | 3,216† | 2,144 | **3.00x** |"
        assert expected in table
        assert "| ResNet-152 | 828 | 6,624 PyTorch | - | - | - |" in table

    def test_training_has_memory(self, run: records.Run) -> None:
        table = tables.training_table(run, ["convmixer_1536_20"])
        assert "| 500 PyTorch | 900 | not measured yet | **1.80x** | 15.6 GiB | 28.1 GiB |" in table

    def test_headline(self, run: records.Run) -> None:
        headline = tables.headline(run)
        assert formats.NOT_MEASURED in headline  # nothing was trained with triton
        assert headline.count("%") == 2 * 9
        assert "| ConvMixer-1536/20, images/s | 1,072 PyTorch | 3,216† | 2,144 |" in headline

    def test_the_terminal_has_a_line_for_each_way(self, run: records.Run) -> None:
        lines = tables.terminal(run.records, CEILINGS)
        assert lines[0] == "64 x 1536 x 32 x 32, float16"
        assert [line.split("  ")[0] for line in lines].count("cuda, channels_last") == 3
        assert sum(line.startswith("(copy or matrix product)") for line in lines) == 3


class TestComparing:
    def test_only_what_noise_does_not_explain(self, run: records.Run, tmp_path: Path) -> None:
        content = synthetic_content()
        for entry, factor in zip(content["benchmarks"], (1.5, 0.5, 1.02), strict=False):
            entry["stats"]["median"] *= factor  # the first are depthwise convolutions
        del content["benchmarks"][-1]
        after = records.load([store(tmp_path / "after.json", content)])
        lines = comparing.compare(run, after)
        changes = [line for line in lines if re.search(r"[+-]\d+\.\d %", line)]
        assert [re.search(r"[+-]\d+\.\d %", line).group() for line in changes] == [  # type: ignore[union-attr]
            "+50.0 %",
            "-50.0 %",
        ]
        total = len(content["benchmarks"])
        assert lines[-1] == (
            f"{total} in both: 1 slower, 1 faster, {total - 2} within noise; "
            "1 only before, 0 only after"
        )

    def test_results_against_themselves(
        self, stored: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report.main(["--compare", str(stored), str(stored)]) == 0
        assert "0 slower, 0 faster" in capsys.readouterr().out


PICTURES = {"kernel_sizes", "planes", "roofline", "throughput", "figure_4", "figure_4_large"}


class TestReport:
    def test_tables_and_pictures(self, run: records.Run, stored: Path, tmp_path: Path) -> None:
        path = report.write(run, [stored], tmp_path)
        assert path.parent.name == "synthetic-gpu-of-a-test"
        text = path.read_text()
        assert SYNTHETIC in text
        assert "0123456789ab" in text and "2000-01-01" in text
        assert "This is a CPU" not in text
        links = re.findall(r"\]\(([^)]+)\)", text)
        assert {f"{name}.png" for name in PICTURES} | {"run.json", "input_size.csv"} <= set(links)
        for link in links:
            assert (path.parent / link).stat().st_size > 500, link
        # Tables have as many cells in every line as in their first.
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1, table

    def test_results_of_a_cpu_say_so_and_leave_the_front_page(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = synthetic_content()
        content["machine_info"] |= {"kind": "cpu"}
        content["benchmarks"] = [
            each for each in content["benchmarks"] if each["extra_info"].get("is_pytorch")
        ]
        source = store(tmp_path / "run.json", content)
        page = tmp_path / "page.md"
        page.write_text("untouched")
        monkeypatch.setattr(report, "FRONT_PAGE", page)
        monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
        assert report.main([str(source)]) == 0
        text = (tmp_path / "results" / "cpu" / "README.md").read_text()
        assert "**This is a CPU.**" in text
        assert page.read_text() == "untouched"

    def test_refreshes_what_stands_between_the_markers(
        self, run: records.Run, tmp_path: Path
    ) -> None:
        page, written = tmp_path / "page.md", tmp_path / "results" / "README.md"
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        for _ in range(2):
            report.refresh_front_page(run, written, page)
        text = page.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n{SYNTHETIC}, ")
        assert text.endswith(f"|\n{report.END}\nafter\n")
        assert "old" not in text and "[All measurements](results/README.md)" in text

    def test_a_page_without_markers_is_left_alone(self, run: records.Run, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("no markers")
        with pytest.raises(records.UsageError, match="there is no <!-- headline:begin -->"):
            report.refresh_front_page(run, tmp_path / "README.md", page)

    def test_the_front_page_has_the_markers(self) -> None:
        """And claims nothing as long as there are no results of a GPU."""
        text = report.FRONT_PAGE.read_text()
        part = text.partition(report.BEGIN)[2].partition(report.END)[0]
        assert part
        measured = [
            path for path in report.RESULTS.glob("*/README.md") if path.parent.name != "cpu"
        ]
        if not measured:
            assert part.strip() == report.front_page_part(None).strip()

    def test_bad_input_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report.main([str(tmp_path / "none.json")]) == 2
        assert re.fullmatch(r"report: .*there is no such file\n", capsys.readouterr().err)


def test_the_cpu_list_from_end_to_end(tmp_path: Path) -> None:
    """Measures for real, on the CPU whatever else there is, and reports on it."""
    result = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-p", "no:xdist"]
    command += [
        "-k",
        "ceiling or (depthwise and k3) or convmixer_32_2",
        f"--benchmark-json={result}",
    ]
    # What says that this test runs in a worker of its own suite is not for the run that it starts.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "so this was the small CPU list" in run.stdout
    assert "impl='cuda' needs a GPU" in run.stdout
    found = records.load([result])
    assert {each.kind for each in found.records} == {
        "ceiling",
        "depthwise",
        "inference",
        "training",
    }
    assert not found.on_gpu
    assert found.ceilings is not None
    for each in found.of("depthwise"):
        work = depthwise_work(2, 32, 16, 16, 3, 4)
        expected = found.ceilings.share_of_copy(work, each.median)
        assert each.info["share_of_copy"] == pytest.approx(expected)
        assert each.info["kernels"]
    text = report.write(found, [result], tmp_path / "results").read_text()
    assert "**This is a CPU.**" in text
