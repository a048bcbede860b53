"""Records, tables, comparisons and reports of benchmarks/, on made-up measurements."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.lib import networks, shapes
from benchmarks.lib.arithmetic import Ceilings
from benchmarks.lib.shapes import Case
from benchmarks.reports import comparing, formats, pictures, records, tables

CEILINGS = Ceilings(bytes_per_second=4e12, operations_per_second=6e14, dtype="float16")
SYNTHETIC = "Synthetic GPU of a test"


def entry(kind: str, subject: dict[str, Any], median: float, **info: Any) -> dict[str, Any]:
    stats = {"median": median, "mean": median, "iqr": 0.01 * median, "rounds": 5}
    return {"extra_info": {"kind": kind, "subject": subject, **info}, "stats": stats}


def swept(kind: str, case: Case, peer: str, median: float, **info: Any) -> dict[str, Any]:
    return entry(
        kind,
        {**case.subject, "peer": peer},
        median,
        bytes=case.work.bytes,
        operations=case.work.operations,
        share_of_copy=CEILINGS.share_of_copy(case.work, median),
        is_pytorch=peer not in tables.KERNELS,
        kernels=["made_up_kernel<a | b>"] if peer == "PyTorch" else [],
        **info,
    )


def depthwise(case: Case, peer: str, median: float) -> dict[str, Any]:
    return swept("depthwise", case, peer, median)


def block(case: Case, peer: str, median: float, peak: int | None = None) -> dict[str, Any]:
    return swept("block", case, peer, median, peak_memory_bytes=peak)


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


def synthetic_blocks() -> list[dict[str, Any]]:
    """torch.compile where the quick list has it; memory as if measured for all."""
    found = []
    for case in shapes.quick_blocks():
        floor, tensor = CEILINGS.floor_seconds(case.work), case.work.bytes // 11
        compiled = case.is_reference and case.kernel_size == 9 and case.layout == "contiguous"
        slow = 1.0 + 0.1 * (case.layout == "channels_last")
        found += [
            block(case, "PyTorch", 2.6 * slow * floor, 6 * tensor),
            *([block(case, "torch.compile", 1.9 * floor, 5 * tensor)] if compiled else []),
            block(case, "cuda", 1.1 * slow * floor, 3 * tensor),
            block(case, "triton", 1.4 * slow * floor, 3 * tensor),
        ]
    return found


def synthetic_content() -> dict[str, Any]:
    """Make the results of a run on a GPU, with made-up numbers and a device that says so."""
    benchmarks = [*synthetic_kernels(), *synthetic_blocks()]
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


class TestRecords:
    def test_later_files_win(self, tmp_path: Path) -> None:
        case = Case("forward", 1, 8, 16, 3)
        paths = []
        for number, median in enumerate((5e-5, 4e-5)):
            content = {**synthetic_content(), "benchmarks": [depthwise(case, "cuda", median)]}
            paths.append(store(tmp_path / f"{number}.json", content))
        (merged,) = records.load(paths).records
        assert merged.median == 4e-5

    def test_all_are_held_against_the_latest_ceilings(self, tmp_path: Path) -> None:
        paths = []
        for number, (size, rate) in enumerate(((3, 1e12), (5, 7e12))):
            entry = depthwise(Case("forward", 1, 8, 16, size), "cuda", 5e-5)
            ceilings = {**vars(CEILINGS), "bytes_per_second": rate}
            content = {**synthetic_content(), "benchmarks": [entry], "ceilings": ceilings}
            paths.append(store(tmp_path / f"{number}.json", content))
        for each in records.load(paths).records:
            share = each.info["bytes"] / 5e-5 / 7e12
            assert each.info["share_of_copy"] == pytest.approx(share)

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

    def test_the_backward_pass_of_a_block_is_a_difference(self) -> None:
        case = Case("training", 64, 1536, 32, 9)
        forward = Case("training_forward", 64, 1536, 32, 9)
        other = Case("training_forward", 64, 1536, 32, 9, layout="channels_last")
        entries = [
            block(case, "cuda", 5e-4),
            block(forward, "cuda", 2e-4),
            block(forward, "triton", 1e-4),
            block(other, "cuda", 1e-4),
            block(case, "PyTorch", 9e-4),
            block(forward, "PyTorch", 4e-4),
        ]
        found = records.backward_passes([records.record(each) for each in entries])
        ours, pytorch = found
        assert ours.subject == {**case.subject, "operation": "backward", "peer": "cuda"}
        assert (ours.seconds, pytorch.seconds) == (pytest.approx(3e-4), pytest.approx(5e-4))
        assert pytorch.is_pytorch and not ours.is_pytorch
        # 6 passes over a tensor and two over the filters.
        moved = 2 * (6 * 64 * 1536 * 32 * 32 + 2 * 1536 * 81)
        assert ours.info["bytes"] == moved
        assert ours.info["share_of_copy"] == pytest.approx(moved / 3e-4 / 4e12)
        # Ranges of 1 % of both times, together 7 us, of 300 us.
        assert ours.noise == pytest.approx(7 / 300)

    @pytest.mark.parametrize(("both", "known"), [(2.05e-4, True), (2.03e-4, False), (1e-4, False)])
    def test_a_difference_that_noise_explains_is_none(self, both: float, known: bool) -> None:
        entries = [
            block(Case("training", 1, 8, 16, 3), "cuda", both),
            block(Case("training_forward", 1, 8, 16, 3), "cuda", 2e-4),
        ]
        for each in entries:
            each["stats"]["iqr"] = 2e-6
        found = records.backward_passes([records.record(each) for each in entries])
        assert bool(found) is known


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

    def test_what_was_not_measured_is_left_out(self, run: records.Run) -> None:
        without = [each for each in run.of("depthwise") if each.subject["peer"] != "triton"]
        table = tables.sweep_table(without, "forward", "kernel_size", "k")
        assert "triton" not in table and formats.NOTHING not in re.findall(r"\S+", table)
        header = table.splitlines()[0]
        assert header == "| k | best of PyTorch | `cuda`, contiguous | `cuda`, channels_last |"

    def test_one_missing_cell_is_empty(self, run: records.Run) -> None:
        missing = {"peer": "cuda", "layout": "contiguous", "kernel_size": 3}
        without = [each for each in run.of("depthwise") if not tables.matching([each], missing)]
        table = tables.sweep_table(without, "forward", "kernel_size", "k")
        assert sum("| - |" in line for line in table.splitlines()) == 1

    def test_each_shape_of_larger_filters_has_its_tables(self, run: records.Run) -> None:
        titles = re.findall(r"^### Forward, (.*)", report.render(run, {}, []), re.MULTILINE)
        for images, channels, plane in shapes.LARGE_KERNEL_SHAPES:
            title = f"{images} x {channels} x {plane} x {plane}, float16"
            assert titles.count(title) == 1

    def test_a_wrong_peer_is_no_baseline(self) -> None:
        """However fast it is; it is shown as wrong."""
        case = Case("forward", 64, 1536, 32, 9)
        entries = [
            depthwise(case, "PyTorch", 1.0),
            depthwise(replace(case, layout="channels_last"), "PyTorch", 0.01),
            depthwise(case, "cuda", 0.5),
        ]
        entries[1]["extra_info"]["wrong"] = "off by 3"
        found = [records.record(each) for each in entries]
        assert records.best_pytorch(found)[found[0].task] is found[0]
        assert "**2.00x**" in tables.sweep_table(found, "forward", "kernel_size", "k")
        assert "| wrong: off by 3 |" in tables.pytorch_table(found, ["forward"])
        lines = tables.terminal(found, None, "depthwise")
        assert next(line for line in lines if "channels_last" in line).endswith("wrong: 10.0 ms")

    def test_ratios_by_kernel_size_and_layout(self) -> None:
        entries = []
        for kernel_size, ratio in ((7, 2.0), (9, 8.0)):
            case = Case("forward", 64, 1536, 32, kernel_size)
            entries += [depthwise(case, "PyTorch", 1.0), depthwise(case, "cuda", 1 / ratio)]
        other = Case("forward", 64, 1536, 32, 9, layout="channels_last")
        entries.append(depthwise(other, "cuda", 0.25))
        table = tables.ratio_table([records.record(each) for each in entries], ["forward"])
        assert table.splitlines()[2:] == [
            "| Forward, cuda, contiguous | 2.00x | 8.00x | 4.00x |",
            "| Forward, cuda, channels_last | - | 4.00x | 4.00x |",
        ]

    def test_networks_stand_beside_the_paper(self, run: records.Run) -> None:
        rows = [row for row in networks.rows() if row.table == 1]
        table = tables.network_table(run, rows)
        # 8 times the paper's 134 images/s; the record of `cuda` says that the host was the limit.
        expected = "| 134 | 1,072 PyTorch | 3,216† | 2,144 | **3.00x** |"
        assert expected in table
        assert "| ResNet-152 | 828 | 6,624 PyTorch | - | - | - |" in table

    def test_training_has_memory(self, run: records.Run) -> None:
        table = tables.training_table(run, ["convmixer_1536_20"])
        assert "| 500 PyTorch | 900 | **1.80x** | 15.6 GiB | 28.1 GiB |" in table
        assert "triton" not in table  # nothing was trained with these

    def test_headline(self, run: records.Run) -> None:
        headline = tables.headline(run)
        assert "images/s in training | 500 PyTorch | 900 | - |" in headline
        assert headline.count("%") == 2 * (9 + 3)
        floor = CEILINGS.floor_seconds(Case("training", *shapes.REFERENCE[:3], 9).work)
        cells = [formats.seconds(factor * floor) for factor in (1.9, 1.1)]
        assert (
            "| block in training, forward and backward, k = 9 "
            + (f"| {cells[0]} | {cells[1]} (91 %, 576 MiB) **1.73x** |")
            in headline
        )
        assert "| ConvMixer-1536/20, images/s | 1,072 PyTorch | 3,216† | 2,144 |" in headline

    @pytest.mark.parametrize("kind", ["depthwise", "block"])
    def test_the_terminal_has_a_line_for_each_way(self, kind: str, run: records.Run) -> None:
        lines = tables.terminal(run.records, CEILINGS, kind)
        assert lines[0] == "64 x 1536 x 32 x 32, float16"
        assert [line.split("  ")[0] for line in lines].count("cuda, channels_last") == 3
        assert tables.terminal(run.records, None, kind)[:2] == lines[:2]
        (floor, *others) = [line for line in lines if line.startswith("(copy or matrix product)")]
        assert len(others) == 2
        case = Case(tables.SWEPT[kind][0], *shapes.REFERENCE[:3], 15)
        assert floor.endswith(formats.seconds(CEILINGS.floor_seconds(case.work)))

    def test_blocks_say_where_torch_compile_is_missing(self, run: records.Run) -> None:
        table = tables.sweep_table(run.of("block"), "inference", "kernel_size", "k")
        best = [line.split(" | ")[1].split(") ")[1] for line in table.splitlines()[2:]]
        assert best == ["PyTorch‡", "torch.compile", "PyTorch‡"]
        assert "‡" not in tables.sweep_table(run.of("depthwise"), "forward", "plane", "")

    def test_training_blocks_have_memory(self, run: records.Run) -> None:
        for operation in shapes.BLOCK_OPERATIONS:
            table = tables.sweep_table(run.of("block"), operation, "kernel_size", "k")
            assert ("MiB" in table) is (operation == "training")

    def test_dtypes_stand_beside_each_other(self, run: records.Run) -> None:
        table = tables.sweep_table(run.of("block"), "training", "dtype", "")
        assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
            "| bfloat16",
            "| float16",
        ]


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


PICTURES = {
    "kernel_sizes",
    "blocks",
    "planes",
    "roofline",
    "throughput",
    "figure_4",
    "figure_4_large",
}


class TestPictures:
    def test_torch_compile_stands_apart_for_blocks_alone(self) -> None:
        compiled = block(Case("inference", 1, 8, 16, 9), "torch.compile, layout kept", 1.0)
        eager = block(Case("inference", 1, 8, 16, 9), "PyTorch", 1.0)
        convolution = depthwise(Case("forward", 1, 8, 16, 9), "torch.compile", 1.0)
        kernel = depthwise(Case("forward", 1, 8, 16, 9, layout="channels_last"), "cuda", 1.0)
        network_ = network("inference", "resnet50", "torch.compile", 1.0)
        entries = [compiled, eager, convolution, kernel, network_]
        assert [pictures._name_of(records.record(each)) for each in entries] == [
            "torch.compile",
            "PyTorch",
            "PyTorch",
            "cuda",
            "PyTorch",
        ]

    def test_lines_have_the_fastest_of_each_task(self) -> None:
        case = Case("forward", 1, 8, 16, 9)
        entries = [
            depthwise(case, "PyTorch", 2.0),
            depthwise(case, "torch.compile", 1.0),
            depthwise(replace(case, kernel_size=3), "PyTorch", 3.0),
            depthwise(replace(case, layout="channels_last"), "PyTorch", 0.5),
            depthwise(case, "cuda", 0.1),
        ]
        lines = dict(pictures._series([records.record(each) for each in entries], "contiguous"))
        times = {name: [each.seconds for each in found] for name, found in lines.items() if found}
        assert times == {"PyTorch": [1.0, 3.0], "cuda": [0.1]}


class TestGraphs:
    def test_a_graph_stands_beside_what_is_launched_one_by_one(self) -> None:
        made = [
            network("inference", "resnet50", way, speed)
            for way, speed in (("PyTorch", 100.0), ("cuda", 200.0), ("cuda, CUDA graph", 400.0))
        ]
        found = [records.record(each) for each in made]
        cells = tables.throughput_cells(found, "resnet50")
        assert cells[1] == "200 (400 in a CUDA graph)" and cells[-1] == "**2.00x**"


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
        titles = set(re.findall(r"^### (.*), 64 x .*", text, flags=re.MULTILINE))
        assert titles == set(tables.TITLES.values())
        assert (
            "### Block in training, backward by difference, 64 x 768 x H x W, k = 9, float16"
            in text
        )
        assert "### Block in inference, 64 x 1536 x 32 x 32, k = 9\n" in text  # dtypes
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
        """The front page claims nothing as long as there are no results of a GPU."""
        text = report.FRONT_PAGE.read_text()
        part = text.partition(report.BEGIN)[2].partition(report.END)[0]
        assert part
        if not list(report.RESULTS.glob("*/README.md")):
            assert part.strip() == report.front_page_part(None).strip()

    def test_bad_input_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report.main([str(tmp_path / "none.json")]) == 2
        assert re.fullmatch(r"report: .*there is no such file\n", capsys.readouterr().err)
