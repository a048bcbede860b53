"""Tables and pictures from the results of `make gpu` or `pytest benchmarks`.

    python benchmarks/report.py RESULT ...                visit.jsonl or what pytest-benchmark
                                                          wrote, of one machine; later files win
    python benchmarks/report.py --compare BEFORE AFTER    what changed beyond noise

The report goes to benchmarks/results/<GPU>/README.md with the results themselves beside it. If they
are from a GPU, the table on the front page is refreshed as well.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages may not be installed

from benchmarks.lib import networks
from benchmarks.lib.arithmetic import LEAST_CHANGE
from benchmarks.lib.shapes import BLOCK_OPERATIONS, KERNEL_SIZES, OPERATIONS
from benchmarks.reports import checks, pictures, tables
from benchmarks.reports.comparing import compare
from benchmarks.reports.formats import markdown
from benchmarks.reports.records import Record, Run, UsageError, backward_passes, exit_code, load

RESULTS = ROOT / "benchmarks" / "results"
FRONT_PAGE = ROOT / "README.md"
BEGIN, END = "<!-- headline:begin -->", "<!-- headline:end -->"
_PAPER_KERNEL_SIZES = (3, 5, 7, 9)
_NOTHING_MEASURED = """\
No time on a GPU has been measured yet: figures here are counts, and predictions are called so.
"""
_BLOCKS = """\
BN(GELU(depthwise(x))) + x, the first half of a ConvMixer block: one fused operation against what
is composed of PyTorch's. Cells are as above; bandwidth counts the passes over a tensor that are
needed: 2 in inference, 5 for the forward pass of training, which keeps what the backward pass will
need, and 11 for both. Of tensors that stay in a cache between two passes the share can exceed
100 %. Times of the backward pass are differences: both passes less the forward pass, where that is
more than noise. Memory is what a training step holds at most beside its inputs. ‡ marks where this
run did not measure torch.compile, which fuses all but the convolution.
"""


def folder_name(run: Run) -> str:
    """Name the folder of a device; results from a CPU lie in one that says so."""
    if not run.on_gpu:
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", run.machine["device"].lower()).strip("-")


def write(run: Run, sources: list[Path], results: Path) -> Path:
    """Write the report with its pictures under `results`, and return its path.

    Raises:
        UsageError: two of the sources, which are copied beside it, have one name.
    """
    folder = results / folder_name(run)
    folder.mkdir(parents=True, exist_ok=True)
    if twice := [name for name, count in Counter(s.name for s in sources).items() if count > 1]:
        raise UsageError(f"{twice[0]}: several results have this name; rename them")
    for source in sources:
        if source.resolve().parent != folder.resolve():
            shutil.copy(source, folder / source.name)
    if run.of("input_size"):
        write_input_sizes(run, folder / "input_size.csv")
    report = folder / "README.md"
    report.write_text(render(run, draw(run, folder), [source.name for source in sources]))
    return report


def draw(run: Run, folder: Path) -> dict[str, str]:
    """Draw what there is data for, and return the names of the files by what they show."""
    drawn = {
        "kernel_sizes": pictures.kernel_sizes(run, "depthwise", folder / "kernel_sizes.png"),
        "blocks": pictures.kernel_sizes(run, "block", folder / "blocks.png"),
        "planes": pictures.planes(run, folder / "planes.png"),
        "roofline": pictures.roofline(run, folder / "roofline.png"),
        "throughput": pictures.throughput(run, networks.rows(), folder / "throughput.png"),
        "figure_4": pictures.input_sizes(run, _PAPER_KERNEL_SIZES, folder / "figure_4.png"),
        "figure_4_large": pictures.input_sizes(run, KERNEL_SIZES, folder / "figure_4_large.png"),
    }
    return {what: name for what, name in drawn.items() if name}


def write_input_sizes(run: Run, path: Path) -> None:
    """The numbers behind figure 4."""
    columns = ("network", "batch", "dtype", "kernel_size", "size", "way")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, "mean_seconds"])
        for each in run.of("input_size"):
            writer.writerow([*(each.subject[name] for name in columns), f"{each.seconds:.6g}"])


def render(run: Run, drawn: dict[str, str], sources: list[str]) -> str:
    """The report as markdown, without what was not measured."""

    def picture(what: str, caption: str) -> str:
        return f"![{caption}]({drawn[what]})\n" if what in drawn else ""

    convolutions, blocks = run.of("depthwise"), run.of("block")
    parts = [f"# Measured on {run.machine['device']}\n", _provenance(run, sources)]
    if not run.on_gpu:
        parts.append(
            "**This is a CPU.** Its numbers show that the benchmarks and this report work. They "
            "say nothing about the kernels, which need a GPU.\n"
        )
    parts.append(tables.ceiling_table(run.ceilings))
    if convolutions:
        parts += [
            "## Depthwise convolution\n",
            "Median time of a call (share of the copy bandwidth) and, in bold, how many times as "
            "fast as the fastest of PyTorch's ways in either layout whose result is right. "
            "Bandwidth counts each tensor once.\n",
            tables.ratio_table(convolutions, OPERATIONS),
            picture("kernel_sizes", "Time by kernel size"),
            picture("planes", "Bandwidth by height and width"),
            picture("roofline", "Roofline"),
            *_sweeps(convolutions, OPERATIONS),
            *_large_filters(convolutions),
            "### What PyTorch ran\n",
            tables.pytorch_table(convolutions, OPERATIONS),
        ]
    if blocks:
        parts += [
            "## Blocks\n",
            _BLOCKS,
            tables.ratio_table(blocks, BLOCK_OPERATIONS),
            picture("blocks", "Time of blocks by kernel size"),
            *_sweeps([*blocks, *backward_passes(blocks)], (*BLOCK_OPERATIONS, "backward")),
            "### What PyTorch ran for blocks\n",
            tables.pytorch_table(blocks, BLOCK_OPERATIONS),
        ]
    if run.of("inference") or run.of("training"):
        parts += [
            "## Networks\n",
            "Images a second, mean of the batches; each in its fastest layout. The paper measured "
            "on other GPUs: its numbers say what it saw, not what to beat. † marks numbers of the "
            "host: it took at least 90 % of the time to queue the work.\n",
            picture("throughput", "Inference"),
            *_network_parts(run),
        ]
    if run.of("input_size"):
        parts += [
            "## Inference time by input size\n",
            "Figure 4 of the paper, which measured on an RTX 3080 Ti; the numbers are in "
            "[input_size.csv](input_size.csv).\n",
            picture("figure_4", "Kernel sizes of the paper"),
            picture("figure_4_large", "Kernel sizes up to 15"),
        ]
    return "\n".join(part for part in [*parts, *checks.report(run), *_skipped(run)] if part)


def _provenance(run: Run, sources: list[str]) -> str:
    names = {
        "driver": "driver",
        "cuda": "CUDA",
        "cudnn": "cuDNN",
        "torch": "PyTorch",
        "triton": "Triton",
        "timm": "timm",
        "python": "Python",
        "threads": "CPU threads",
        "clocks": "clocks (SM, its most, memory), power limit, temperature",
    }
    rows = [
        ["commit", ", ".join(run.commits)],
        ["date", ", ".join(run.dates)],
        ["list", ", ".join(run.selections)],
        *([names[name], str(run.machine[name])] for name in names if run.machine.get(name)),
        ["results", ", ".join(f"[{name}]({name})" for name in sources)],
    ]
    return markdown(["", ""], rows)


def _large_filters(records: list[Record]) -> list[str]:
    """Tables by kernel size of the shapes on which larger filters were measured."""
    shapes: dict[tuple[int, int, int], list[Record]] = defaultdict(list)
    for each in records:
        if each.subject["kernel_size"] > max(KERNEL_SIZES):
            images, channels, plane = (
                each.subject[name] for name in ("images", "channels", "plane")
            )
            shapes[images, channels, plane].append(each)
    return [part for found in shapes.values() for part in _sweeps(found, OPERATIONS)]


def _sweeps(records: list[Record], operations: Sequence[str]) -> list[str]:
    """A table for each operation along each setting that has several values."""
    parts = []
    for along, title in (("kernel_size", "k"), ("plane", "height, width"), ("dtype", "")):
        setting = tables.focus(records, along)
        if setting is None:
            continue
        values = {each.subject[along] for each in tables.matching(records, setting)}
        if len(values) == 1 and along != "kernel_size":
            continue
        for operation in operations:
            if table := tables.sweep_table(records, operation, along, title):
                parts += [f"### {tables.TITLES[operation]}, {_setting(setting)}\n", table]
    return parts


def _setting(setting: dict[str, Any]) -> str:
    named = dict(setting)
    plane = named.pop("plane", None)
    shape = [str(named.pop("images")), str(named.pop("channels"))]
    shape += [str(plane)] * 2 if plane else ["H", "W"]
    kernel_size = f", k = {named['kernel_size']}" if "kernel_size" in named else ""
    dtype = f", {named['dtype']}" if "dtype" in named else ""
    return f"{' x '.join(shape)}{kernel_size}{dtype}"


def _network_parts(run: Run) -> list[str]:
    rows = networks.rows()
    measured, trained = (
        list(dict.fromkeys(each.subject["network"] for each in run.of(kind)))
        for kind in ("inference", "training")
    )
    parts = []
    for table in (1, 2, 3, 5):
        listed = [row for row in rows if row.table == table and row.network in measured]
        if listed:
            parts += [f"### Table {table}\n", tables.network_table(run, listed)]
    notes = {row.label: networks.note(row.network) for row in rows if row.network in measured}
    parts.append("".join(f"- {label}: {note}.\n" for label, note in notes.items() if note))
    others = [name for name in measured if name not in {row.network for row in rows}]
    if others:
        parts += ["### In no table of the paper\n", tables.small_table(run, others)]
    if trained:
        parts += [
            "### Training\n",
            "Forward, backward and AdamW; float16 autocast on a GPU.\n",
            tables.training_table(run, trained),
        ]
    return parts


def _skipped(run: Run) -> list[str]:
    if not run.skipped:
        return []
    lines = [f"- {count:,}: {reason}\n" for reason, count in run.skipped.items()]
    return ["## Skipped\n", "".join(lines)]


def refresh_front_page(run: Run, report: Path, page: Path = FRONT_PAGE) -> None:
    """Put the headline table between the markers of the front page.

    Raises:
        UsageError: the page has no markers.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise UsageError(f"{page}: there is no {BEGIN} ... {END}")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{front_page_part(run, report, page)}{END}{after}")


def front_page_part(run: Run | None, report: Path | None = None, page: Path = FRONT_PAGE) -> str:
    """Return the text between the markers; with no run, that nothing is measured."""
    if run is None or report is None:
        return _NOTHING_MEASURED
    link = report.resolve().relative_to(page.resolve().parent).as_posix()
    machine = run.machine
    return (
        f"{machine['device']}, PyTorch {machine['torch']}, commit {run.commits[-1]}, "
        f"{run.dates[-1]}: median time (share of\nthe copy bandwidth) and how many times as fast "
        f"as the fastest way through PyTorch. A block is\nBN(GELU(depthwise(x))) + x. "
        f"[All measurements]({link}).\n\n"
        f"{tables.headline(run)}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="print what changed"
    )
    parser.add_argument(
        "--least",
        type=float,
        default=LEAST_CHANGE,
        metavar="SHARE",
        help=f"change below which nothing is printed (default: {LEAST_CHANGE:g})",
    )
    options = parser.parse_args(arguments)
    if bool(options.results) == bool(options.compare):
        parser.error("name results to report on, or two to --compare")
    if options.compare:
        before, after = options.compare
        command = partial(print_changes, before, after, options.least)
    else:
        command = partial(report_on, options.results)
    return exit_code("report", command)


def print_changes(before: Path, after: Path, least: float) -> None:
    """Print what differs between two results by more than noise."""
    print("\n".join(compare(load([before]), load([after]), least)))


def report_on(results: list[Path]) -> None:
    """Write the report on results, and their table on the front page if they are a GPU's."""
    run = load(results)
    report = write(run, results, RESULTS)
    print(f"wrote {report}")
    if run.on_gpu:
        refresh_front_page(run, report)
        print(f"refreshed the table in {FRONT_PAGE}")
    else:
        print("these are results from a CPU: the table on the front page stays as it is")


if __name__ == "__main__":
    sys.exit(main())
