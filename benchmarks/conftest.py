"""Options, fixtures and the terminal's summary of ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.lib import machine, measure, networks, peers, shapes, ways
from benchmarks.lib.arithmetic import Ceilings
from benchmarks.lib.facts import Facts
from benchmarks.lib.measurement import Measurement, NotMeasured
from benchmarks.reports import records, tables

_SELECTION = pytest.StashKey[shapes.Selection]()
_DEVICE = pytest.StashKey[torch.device]()
_START = pytest.StashKey[float]()
_CEILINGS = pytest.StashKey[Ceilings]()
_SKIPPED = pytest.StashKey["SkipCounter"]()

_QUICK_MINUTES = 5.5
# The most important first, so that a run that is out of time leaves out the rest: the kernels and
# the blocks on the reference shape at the kernel sizes of the front page, networks, and then the
# other shapes, the other kernel sizes and what torch.compile has to compile first.
_ORDER = (
    ("test_ceilings", True),
    ("test_host", True),
    ("test_loaders", True),
    ("test_depthwise", True),
    ("test_blocks", True),
    ("test_networks", True),
    ("test_training", True),
    ("test_input_size", True),
    ("test_blocks", False),
    ("test_depthwise", False),
    ("test_networks", False),
)
_FIRST_KERNEL_SIZES = (7, 9, 15)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of the depthwise kernels and of ConvMixer")
    group.addoption(
        "--quick",
        action="store_true",
        help="a short list instead of every combination; begins none after 5.5 minutes",
    )
    group.addoption(
        "--minutes",
        type=float,
        metavar="M",
        help="begin no measurement after so many minutes (default: 5.5 with --quick, else never)",
    )
    group.addoption(
        "--facts",
        type=Path,
        metavar="FILE.jsonl",
        help="add each measurement to a file as soon as it is made; report.py reads it",
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def pytest_configure(config: pytest.Config) -> None:
    # Measurements are written in the end, also when a time limit ends the run.
    signal.signal(signal.SIGTERM, _interrupt)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config.stash[_DEVICE] = device
    config.stash[_SELECTION] = shapes.selection(device.type == "cuda", config.getoption("quick"))
    config.stash[_START] = time.monotonic()
    config.stash[_SKIPPED] = SkipCounter()
    config.pluginmanager.register(config.stash[_SKIPPED])
    if not any("--benchmark-columns" in word for word in config.invocation_params.args):
        config.option.benchmark_columns = ["median", "iqr", "rounds"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    selection = metafunc.config.stash[_SELECTION]
    wanted = set(metafunc.fixturenames)
    if {"case", "peer"} <= wanted:
        pairs = [(case, peer) for case in selection.cases for peer in peers.peers(case, selection)]
        ids = [f"{case}-{peer.name}" for case, peer in pairs]
        metafunc.parametrize(("case", "peer"), pairs, ids=ids)
    elif {"block", "peer"} <= wanted:
        pairs = [
            (block, peer)
            for block in selection.blocks
            for peer in peers.block_peers(block, selection)
        ]
        ids = [f"{block}-{peer.name}" for block, peer in pairs]
        metafunc.parametrize(("block", "peer"), pairs, ids=ids)
    elif {"kernel_size", "size", "way"} <= wanted:
        figure = selection.input_sizes
        runs = [
            (kernel_size, size, way)
            for kernel_size in figure.kernel_sizes
            for size in figure.sizes
            for way in ways.plain_ways()
        ]
        ids = [f"k{kernel_size}-{size}-{way}" for kernel_size, size, way in runs]
        metafunc.parametrize(("kernel_size", "size", "way"), runs, ids=ids)
    elif {"network", "way"} <= wanted:
        training = "training" in metafunc.function.__name__
        numbers = selection.training_tables if training else selection.tables
        listed = networks.cpu_networks()
        if numbers:
            listed = networks.networks(numbers) + networks.other_networks()
        if training:
            listed = [network for network in listed if network.has_depthwise]
        found = [
            (network, way) for network in listed for way in ways.ways(network, selection, training)
        ]
        ids = [f"{network.name}-{way}" for network, way in found]
        metafunc.parametrize(("network", "way"), found, ids=ids)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_position)
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=measure.clock, group=item.path.stem))


def _position(item: pytest.Item) -> int:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    case = parameters.get("case") or parameters.get("block")
    who = parameters.get("peer") or parameters.get("way")
    first = case is None or (case.is_reference and case.kernel_size in _FIRST_KERNEL_SIZES)
    return _ORDER.index((item.path.stem, first and not (who and who.compiled)))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except NotMeasured as reason:
        pytest.skip(str(reason))


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("minutes")
    if minutes is None and item.config.getoption("quick"):
        minutes = _QUICK_MINUTES
    if minutes is not None and time.monotonic() - item.config.stash[_START] > 60 * minutes:
        pytest.skip(f"out of time after {minutes:g} minutes")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """End the run, and keep its results, after an illegal access: the GPU runs nothing any more."""
    report = yield
    if report.failed and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            item.session.shouldstop = f"{item.nodeid} lost the GPU: {error}"
    return report


class SkipCounter:
    """Count of the measurements that were skipped, by reason."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    torch.backends.cudnn.benchmark = True
    return pytestconfig.stash[_DEVICE]


@pytest.fixture(scope="session")
def selection(pytestconfig: pytest.Config) -> shapes.Selection:
    return pytestconfig.stash[_SELECTION]


@pytest.fixture(scope="session")
def ceiling_samples(device: torch.device) -> measure.CeilingSamples:
    return measure.ceiling_samples(device)


@pytest.fixture(scope="session")
def ceilings(
    ceiling_samples: measure.CeilingSamples, device: torch.device, pytestconfig: pytest.Config
) -> Ceilings:
    found = measure.ceilings(ceiling_samples, device)
    pytestconfig.stash[_CEILINGS] = found
    return found


class Recorder:
    """Fixture that hands measurements and shares of the ceilings to pytest-benchmark and a file."""

    def __init__(self, benchmark: Any, ceilings: Ceilings, facts: Facts | None) -> None:
        self._benchmark = benchmark
        self._ceilings = ceilings
        self._facts = facts

    def __call__(self, measurement: Measurement) -> None:
        info = measurement.extra_info
        if measurement.work is not None:
            info |= self._ceilings.reached(measurement.work, measurement.stats["median"])
        if self._facts is not None:
            self._facts.add("measured", extra_info=info, stats=measurement.stats)
        self._benchmark.extra_info.update(info)
        measure.clock.play(self._benchmark, measurement.samples)


@pytest.fixture(scope="session")
def facts(pytestconfig: pytest.Config, ceilings: Ceilings) -> Facts | None:
    """The file of --facts, which begins with what holds for the whole run."""
    path = pytestconfig.getoption("facts")
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = Facts(path)
    name = pytestconfig.stash[_SELECTION].name
    records.add_provenance(facts, name, machine.commit())
    facts.add("machine", **machine.describe(pytestconfig.stash[_DEVICE]))
    facts.add("ceilings", **vars(ceilings))
    return facts


@pytest.fixture
def record(benchmark: Any, ceilings: Ceilings, facts: Facts | None) -> Recorder:
    return Recorder(benchmark, ceilings, facts)


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Take the commit of the checkout, or of the file that came with one without history."""
    commit_info.update(machine.commit())


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.clear()
    machine_info.update(machine.describe(config.stash[_DEVICE]))


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what holds for the whole run, and drop what no report reads."""
    output_json["selection"] = config.stash[_SELECTION].name
    output_json["skipped"] = dict(config.stash[_SKIPPED].reasons)
    output_json["ceilings"] = vars(config.stash[_CEILINGS]) if _CEILINGS in config.stash else None
    for name in ("project", "branch"):
        output_json["commit_info"].pop(name, None)
    for benchmark in output_json["benchmarks"]:
        for name in ("params", "param", "options"):
            benchmark.pop(name, None)
        kept = ("median", "mean", "min", "max", "stddev", "iqr", "rounds")
        benchmark["stats"] = {name: benchmark["stats"][name] for name in kept}
    records.add_ratios(output_json["benchmarks"])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """A short table of the kernels, and what was skipped and why."""
    write = terminalreporter.write_line
    session = getattr(config, "_benchmarksession", None)
    found = [records.record(each.as_dict()) for each in session.benchmarks] if session else []
    # Whatever was recorded was held against the ceilings.
    for kind, title in (("depthwise", "depthwise convolution"), ("block", "block")):
        if lines := tables.terminal(found, config.stash[_CEILINGS], kind) if found else []:
            terminalreporter.section(f"{title}, median time")
            for line in lines:
                write(line)
    reasons = config.stash[_SKIPPED].reasons
    on_cpu = config.stash[_DEVICE].type == "cpu"
    if reasons or on_cpu:
        terminalreporter.section("not measured")
    if on_cpu:
        write(_no_gpu())
    for reason, count in reasons.most_common():
        write(f"{count} skipped: {reason}")


def _no_gpu() -> str:
    count = len(networks.networks(shapes.FULL.tables) + networks.other_networks())
    why = (
        "PyTorch finds no CUDA device"
        if torch.version.cuda
        else "this PyTorch is built without CUDA"
    )
    return (
        f"{why}, so this was the small CPU list: it shows that the benchmarks work and says "
        f"nothing about the kernels. Skipped were the {len(shapes.FULL.cases):,} cases of the GPU "
        f"list ({len(shapes.QUICK.cases)} with --quick), {len(shapes.FULL.blocks)} of blocks "
        f"({len(shapes.QUICK.blocks)}), the {count} networks of tables 1, 2, 3 and 5, and figure 4."
    )
