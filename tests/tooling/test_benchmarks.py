"""The arithmetic, lists, peers, blocks and networks of benchmarks/, and a run on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report
from benchmarks.lib import blocks, convolutions, measure, networks, peers, shapes, ways
from benchmarks.lib.arithmetic import (
    Ceilings,
    Work,
    block_work,
    change,
    depthwise_work,
    noise,
    speedup,
)
from benchmarks.lib.measurement import NotMeasured, WrongResult
from benchmarks.lib.shapes import Case
from benchmarks.reports import records
from convmixer import ConvMixer
from convmixer_kernels import dispatch
from convmixer_kernels.backends import cuda

ROOT = Path(__file__).resolve().parents[2]


class TestArithmetic:
    @pytest.mark.parametrize("kernel_size", [1, 3, 8, 15])
    def test_counts_the_products_of_a_convolution_of_ones(self, kernel_size: int) -> None:
        """Each output of a convolution of ones is its number of products inside the image."""
        before, after = (kernel_size - 1) // 2, kernel_size // 2
        image = F.pad(torch.ones(1, 1, 5, 9), (before, after, before, after))
        products = F.conv2d(image, torch.ones(1, 1, kernel_size, kernel_size)).sum().item()
        assert depthwise_work((2, 3, 5, 9), kernel_size, 2).operations == 2 * 2 * 3 * products

    def test_counts_two_tensors_and_the_filters(self) -> None:
        reference = Case("forward", 64, 1536, 32, 9)
        assert reference.work.bytes == 2 * (2 * 64 * 1536 * 32 * 32 + 1536 * 81)
        assert reference.work.operations / reference.work.bytes == pytest.approx(35.1, abs=0.1)

    @pytest.mark.parametrize(
        ("operation", "passes", "convolutions"),
        [("inference", 2, 1), ("training_forward", 5, 1), ("training", 11, 3)],
    )
    def test_a_block_is_counted_in_passes(
        self, operation: str, passes: int, convolutions: int
    ) -> None:
        work = block_work(operation, (4, 8, 16, 12), kernel_size=9, element_bytes=2)
        assert work.bytes == 2 * (passes * 4 * 8 * 16 * 12 + convolutions * 8 * 81)
        alone = depthwise_work((4, 8, 16, 12), 9, 2)
        assert work.operations == convolutions * alone.operations
        assert Case(operation, 4, 8, 16, 9).work == block_work(operation, (4, 8, 16, 16), 9, 2)

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
        large = 3 * 4 * 2 * 2 * 3
        every = 2 * 3 * 9 * 7 * 2 * 2 * 3 + large
        assert len(set(shapes.FULL.cases)) == len(shapes.FULL.cases) == every

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

    def test_blocks_are_measured_as_the_kernels_are(self) -> None:
        quick, full = set(shapes.QUICK.blocks), set(shapes.FULL.blocks)
        assert len(quick) == len(shapes.QUICK.blocks) and quick <= full
        reference = [case for case in shapes.QUICK.blocks if case.is_reference]
        assert {case.kernel_size for case in reference} == {7, 9, 15}
        assert {case.operation for case in reference} == set(shapes.BLOCK_OPERATIONS)
        assert any(case.shape == shapes.REFERENCE and case.dtype == "bfloat16" for case in quick)
        for selection, compiled in ((shapes.QUICK, {9}), (shapes.FULL, set(shapes.KERNEL_SIZES))):
            found = [
                case
                for case in selection.blocks
                if set(peers.COMPILED) <= set(peers.block_peers(case, selection))
            ]
            assert {case.kernel_size for case in found} == compiled
            assert all(case.is_reference and case.layout == "contiguous" for case in found)

    def test_without_a_gpu_nothing_else_is_measured(self) -> None:
        assert shapes.selection(has_gpu=False, quick=False) is shapes.CPU
        assert shapes.selection(has_gpu=True, quick=True) is shapes.QUICK


class TestMeasuring:
    def test_the_clock_plays_the_samples(self) -> None:
        """The clock is read twice around each call, as pytest-benchmark reads it."""
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

    @pytest.mark.parametrize(("cost", "most_calls", "rounds"), [(0.02, 6, 3), (1e-4, 400, 25)])
    def test_slow_calls_are_repeated_seldom(
        self, cost: float, most_calls: int, rounds: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Calls take the time that they say, on a clock like that of a GPU."""
        made: list[int] = []

        def events(calls: Sequence[Callable[[], object]]) -> list[float]:
            seconds = []
            for call in calls:
                before = len(made)
                call()
                seconds.append(cost * (len(made) - before))
            return seconds

        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(measure, "_event_samples", events)
        monkeypatch.setattr(
            measure, "_turn", lambda calls, in_graph: partial(measure._call_all, calls)
        )
        calls = [lambda each=each: made.append(each) for each in range(3)]
        samples = measure.kernel_samples(calls, torch.device("cuda"), budget=0.03)
        assert samples == pytest.approx([cost] * rounds)
        assert len(made) <= most_calls

    def test_the_fastest_copy_is_the_ceiling(self) -> None:
        copies = [
            measure.Copy("slow", 100, [2.0, 1.0]),
            measure.Copy("fast", 300, [3.0, 0.5]),
        ]
        samples = measure.CeilingSamples(copies, [0.1, 0.2])
        found = measure.ceilings(samples, torch.device("cpu"))
        assert found.bytes_per_second == 600
        assert found.operations_per_second == pytest.approx(2 * 512**3 / 0.1)

    def test_memory_of_a_cpu_is_not_counted(self) -> None:
        assert measure.peak_memory(lambda: None, torch.device("cpu")) is None

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
            with pytest.raises(NotMeasured, match=r"fails: ValueError: broken"):  # noqa: SIM117
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


class TestWrongResults:
    """A time of something else than what was asked for."""

    case = Case("forward", 1, 2, 4, 3, "float32")

    def test_of_pytorch_is_recorded_as_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        zeros = lambda input, grad_output, weight: torch.zeros_like(input)  # noqa: E731
        monkeypatch.setattr(peers.Peer, "run", lambda *_: zeros)
        found = convolutions.measured(self.case, peers.EAGER, torch.device("cpu"), budget=0)
        assert found.info["wrong"].startswith("off by")
        assert len(found.samples) >= 2

    def test_of_a_kernel_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peers.Peer, "unavailable", lambda *_: None)
        monkeypatch.setattr(peers.Peer, "run", lambda *_: lambda input, *_: input + 1)
        with pytest.raises(WrongResult, match="cuda: off by"):
            convolutions.measured(self.case, peers.KERNELS[0], torch.device("cpu"), budget=0)

    def test_of_a_right_one_nothing_is_said(self) -> None:
        found = convolutions.measured(self.case, peers.EAGER, torch.device("cpu"), budget=0)
        assert "wrong" not in found.info and found.info["is_pytorch"]

    def test_of_networks(self) -> None:
        with pytest.raises(WrongResult, match=r"cuda: relative error of the logits 3\.00e-02"):
            ways.Way("cuda", "contiguous").judged("logits", 0.03, 0.02)
        pytorch = ways.Way("torch", "channels_last")
        for error in (0.03, float("nan")):
            assert "allowed 2.00e-02" in pytorch.judged("logits", error, 0.02)["wrong"]
        assert "wrong" not in pytorch.judged("logits", 0.01, 0.02)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        (ways.Way("torch", "contiguous"), "PyTorch"),
        (ways.Way("torch", "channels_last"), "PyTorch, channels_last"),
        (ways.Way("torch", "contiguous", compiled=True), "torch.compile"),
        (ways.Way("torch", "contiguous", True, keep_layout=True), "torch.compile, layout kept"),
        (ways.Way("cuda", "channels_last"), "cuda, channels_last"),
        (ways.Way("cuda", "contiguous", compiled=True), "cuda, torch.compile"),
        (ways.Way("cuda", "channels_last", graphed=True), "cuda, CUDA graph, channels_last"),
    ],
)
def test_ways_have_names(way: ways.Way, name: str) -> None:
    assert str(way) == name


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# PyTorch rounds factors of float32 convolutions to ten bits on a GPU.
EAGER_DTYPE = "float32" if DEVICE == "cpu" else "float16"


def tiny_block(operation: str, layout: str, dtype: str = EAGER_DTYPE) -> Case:
    return Case(operation, 2, 3, 8, 5, dtype, layout)


def block_error(peer: peers.Peer, case: Case, run: blocks.Run | None = None) -> str | None:
    torch.manual_seed(0)
    contiguous = replace(case, operation="training", layout="contiguous")
    inputs, exact = blocks.load.__wrapped__(contiguous, torch.device(DEVICE))
    run = run or blocks.runner(peer, case.operation)
    return blocks.error_of(run, case, inputs, exact[case.operation], peer.units)


every_operation = pytest.mark.parametrize("operation", shapes.BLOCK_OPERATIONS)


class TestBlocks:
    """Kernels that are emulated or interpreted are checked as on a GPU, but never timed."""

    @every_operation
    @pytest.mark.parametrize("layout", shapes.LAYOUTS)
    @pytest.mark.parametrize(
        ("peer", "dtype"),
        [
            (peers.EAGER, EAGER_DTYPE),
            (peers.EAGER, "bfloat16"),
            *((kernel, "float16") for kernel in peers.KERNELS),
        ],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_passes_its_check(
        self, peer: peers.Peer, dtype: str, layout: str, operation: str
    ) -> None:
        assert block_error(peer, tiny_block(operation, layout, dtype)) is None

    def test_every_result_is_checked(self) -> None:
        case = tiny_block("training", "contiguous")
        right = blocks.runner(peers.EAGER, "training")
        names = list(right(blocks.random_inputs(case, torch.device(DEVICE))))
        assert len(names) == 7
        for wrong in names:

            def run(inputs: blocks.Inputs, wrong: str = wrong) -> dict[str, Tensor]:
                found = right(inputs)
                found[wrong].view(-1)[-1] += 0.05 * found[wrong].abs().max()
                return found

            assert (block_error(peers.EAGER, case, run) or "").startswith(f"{wrong}: off by")

    def test_a_second_call_is_checked_from_the_same_statistics(self) -> None:
        calls = []

        def run(inputs: blocks.Inputs) -> dict[str, Tensor]:
            calls.append(inputs.running_mean.clone())
            found = blocks.runner(peers.EAGER, "training")(inputs)
            if len(calls) == 2:
                found["running mean"].zero_()
            return found

        error = block_error(peers.EAGER, tiny_block("training", "contiguous"), run)
        assert (error or "").startswith("running mean: off by")
        assert torch.equal(*calls)

    @every_operation
    def test_the_kernels_run_the_fused_operations(
        self, operation: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        called = record_calls(monkeypatch, cuda)
        assert block_error(peers.KERNELS[0], tiny_block(operation, "contiguous", "float16")) is None
        assert ("forward_normalised" in called) is (operation == "inference")
        assert ("forward_moments" in called) is (operation != "inference")
        assert ("fused_backward" in called) is (operation == "training")
        called.clear()
        assert block_error(peers.EAGER, tiny_block(operation, "contiguous")) is None
        assert called == set()

    def test_the_forward_pass_of_training_keeps_what_the_backward_pass_needs(self) -> None:
        inputs = blocks.random_inputs(tiny_block("training", "contiguous"), torch.device(DEVICE))
        forward = blocks.runner(peers.EAGER, "training_forward")(inputs)["output"]
        assert forward.requires_grad
        both = blocks.runner(peers.EAGER, "training")(inputs)
        assert not any(tensor.requires_grad for tensor in both.values())


FUSED = ("forward_normalised", "forward_moments", "moments", "normalise", "fused_backward")


def record_calls(monkeypatch: pytest.MonkeyPatch, module: Any) -> set[str]:
    """The fused steps that are called from now on."""
    called: set[str] = set()

    def recorded(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called.add(name)
            return operator(*arguments)

        return call

    for name in FUSED:
        monkeypatch.setattr(module, name, recorded(name, getattr(module, name)))
    return called


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

    @pytest.mark.parametrize(
        ("name", "millions"),
        [
            ("rep_lk_net_31b", 79),
            ("uni_rep_lk_net_tiny", 31),
            ("van_b2", 26.6),
            ("slak_tiny", 30 / (1 - 0.4)),  # without its 40 % of zeros
        ],
    )
    def test_networks_with_large_filters_are_as_large_as_published(
        self, name: str, millions: float
    ) -> None:
        found = {each.name: each for each in networks.other_networks()}
        with torch.device("meta"):
            model = found[name].build()
            assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        assert networks.parameters(found[name]) == pytest.approx(millions * 1e6, rel=0.03)

    def test_large_filters_are_measured_on_the_kernels_that_take_them(self) -> None:
        all_sizes = {17, 21, 27, 31}
        for selection, sizes in (
            (shapes.QUICK, all_sizes),
            (shapes.FULL, all_sizes),
            (shapes.VISIT, {17, 31}),
        ):
            large = [case for case in selection.cases if case.kernel_size > 15]
            assert {case.kernel_size for case in large} == sizes
            kernels = {peer.kernels for case in large for peer in peers.peers(case, selection)}
            assert kernels == {None, "cuda", "triton"}

    @pytest.mark.parametrize("name", ["isotropic_mobilenetv3_p16", "resmlp_s12_p8"])
    def test_networks_built_here_classify(self, name: str) -> None:
        found = {each.name: each for each in networks.networks((2,))}
        with torch.device("meta"):
            model = found[name].build()
            assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)

    def test_pytorch_runs_its_own_convolutions(self) -> None:
        """The kernels have the same parameters, whichever is asked for first."""
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

    @pytest.mark.parametrize("training", [False, True])
    def test_only_ways_on_the_kernels_fuse(
        self, training: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Although `impl="auto"`, with which models are built, stands for kernels on a GPU."""
        resolve = dispatch.resolve
        monkeypatch.setattr(
            dispatch,
            "resolve",
            lambda input, weight, impl, fused=False: resolve(
                input, weight, impl.replace("auto", "cuda"), fused
            ),
        )
        called = record_calls(monkeypatch, cuda)
        torch.manual_seed(0)
        model = ConvMixer(4, 2, 3, 4, n_classes=3).to(DEVICE).half().train(training)
        images = torch.randn(2, 3, 16, 16).to(DEVICE).half()
        logits = {}
        for layout in shapes.LAYOUTS:
            for implementation in ("torch", "cuda"):
                called.clear()
                run = ways.Way(implementation, layout).prepare(model)
                batch = images.to(memory_format=ways.MEMORY_FORMATS[layout])
                with torch.set_grad_enabled(training):
                    logits[implementation] = run(batch)
                wanted = {"normalise"} | (
                    {"forward_moments", "moments"} if training else {"forward_normalised"}
                )
                assert called == (wanted if implementation == "cuda" else set())
                named = [each.impl for each in model.modules() if hasattr(each, "impl")]
                assert set(named) == {implementation}
            assert measure.relative_error(logits["cuda"], logits["torch"]) < 0.02


def _rounds_to(parameters: int, printed: float) -> bool:
    decimals = len(str(printed).partition(".")[2])
    return abs(parameters / 1e6 - printed) <= 0.5 * 10**-decimals


def test_the_cpu_list_from_end_to_end(tmp_path: Path) -> None:
    """Measures for real, on the CPU whatever else there is, and reports on it."""
    result, facts = tmp_path / "run.json", tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-p", "no:xdist"]
    command += [
        "-k",
        "ceiling or ((depthwise or block) and 16x16 and k9) or (forward and 8x8) or convmixer_32_2",
        f"--benchmark-json={result}",
        f"--facts={facts}",
    ]
    # The run that this starts must not take itself for a worker of this suite.
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
    assert not found.on_gpu
    # Row by row in the file of facts, too, as far as it got.
    by_row = records.load([facts])
    assert [each.key for each in by_row.records] == [each.key for each in found.records]
    assert [each.info["share_of_copy"] for each in by_row.of("block")] == pytest.approx(
        [each.info["share_of_copy"] for each in found.of("block")]
    )
    # The order is that of importance.
    order = [(each.kind, each.subject.get("plane", 16)) for each in found.records]
    assert list(dict.fromkeys(order)) == [
        ("ceiling", 16),
        ("depthwise", 16),
        ("block", 16),
        ("inference", 16),
        ("training", 16),
        ("depthwise", 8),
    ]
    assert {each.operation for each in found.of("block")} == set(shapes.BLOCK_OPERATIONS)
    for each in [*found.of("depthwise"), *found.of("block")]:
        size = each.subject["plane"]
        work = depthwise_work((2, 32, size, size), 9, 4)
        if each.kind == "block":
            work = block_work(str(each.operation), (2, 32, size, size), 9, 4)
            assert each.info["peak_memory_bytes"] is None
        assert found.ceilings is not None
        expected = found.ceilings.share_of_copy(work, each.median)
        assert each.info["share_of_copy"] == pytest.approx(expected)
        assert each.info["kernels"]
    text = report.write(found, [result], tmp_path / "results").read_text()
    assert "**This is a CPU.**" in text
