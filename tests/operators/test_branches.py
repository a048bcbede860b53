"""Parallel depthwise branches that run as one convolution: merge_branches and restore_branches."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convmixer_kernels import (
    DepthwiseConv2d,
    MergedBranches,
    convert_depthwise,
    inference_tables,
    merge_branches,
    restore_branches,
)
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16

pytestmark = pytest.mark.gpu

CHANNELS = 3


def depthwise(
    size: int | tuple[int, int], dilation: int = 1, bias: bool = False, channels: int = CHANNELS
) -> nn.Conv2d:
    return nn.Conv2d(*(channels, channels, size, 1, "same", dilation), groups=channels, bias=bias)


def normed(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


class Added(nn.Module):
    """The sum of branches, as the code of RepLKNet adds them up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, image: Tensor) -> Tensor:
        output = self.branches[0](image)
        for branch in self.branches[1:]:
            output += branch(image)
        return output


class Dilated(nn.Module):
    """UniRepLKNet's: convolutions and normalisations side by side, under computed names."""

    def __init__(self) -> None:
        super().__init__()
        self.dilations = (1, 2, 3)
        self.large, self.large_norm = depthwise(7), nn.BatchNorm2d(CHANNELS)
        for dilation in self.dilations:
            setattr(self, f"convolution_{dilation}", depthwise(3, dilation))
            setattr(self, f"norm_{dilation}", nn.BatchNorm2d(CHANNELS, eps=1e-3))

    def forward(self, image: Tensor) -> Tensor:
        output = self.large_norm(self.large(image))
        for dilation in self.dilations:
            convolution = getattr(self, f"convolution_{dilation}")
            output = output + getattr(self, f"norm_{dilation}")(convolution(image))
        return output


class Normalised(nn.Module):
    """RepViT's: branches, one without normalisation, and the image, all normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = normed(depthwise(5)), depthwise(1, bias=True)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.norm(self.large(image) + self.small(image) + image)
        return output


class Activated(nn.Module):
    """MobileOne's: a normalised image among the branches, and layers after their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(CHANNELS)
        self.convolutions = nn.ModuleList(normed(depthwise(3)) for _ in range(2))
        self.dropped = nn.Identity()
        self.mix, self.activation = nn.Conv2d(CHANNELS, 2, 1), nn.GELU()

    def forward(self, image: Tensor) -> Tensor:
        output = 0
        for convolution in self.convolutions:
            output += convolution(image)
        output = self.dropped(output) + self.skip(image)
        return self.activation(self.mix(output))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "large and small": lambda: Added(normed(depthwise(9)), normed(depthwise(5))),
    "dilated": Dilated,
    "normalised": Normalised,
    "activated": Activated,
    "crossed": lambda: Added(*(normed(depthwise(size)) for size in ((7, 3), (3, 7), (3, 3)))),
    "even": lambda: Added(normed(depthwise(4)), normed(depthwise(2, 3)), normed(depthwise(3))),
    "without parameters": lambda: Added(
        nn.Sequential(depthwise(3, bias=True), nn.BatchNorm2d(CHANNELS, affine=False)), depthwise(5)
    ),
}


def trained(block: nn.Module) -> nn.Module:
    """Give a block parameters and statistics as training leaves them behind."""
    for each in block.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
            if each.affine:
                nn.init.uniform_(each.weight, 0.5, 2)
                nn.init.normal_(each.bias)
    return block.to(DEVICE)


def pair(name: str = "dilated", impl: str = "auto") -> tuple[nn.Module, nn.Module]:
    """Return a merged block and the same one as it was."""
    plain = trained(BLOCKS[name]())
    merged = copy.deepcopy(plain)
    assert merge_branches(merged, impl).merged == ("",)
    return merged, plain


def images(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (9, 6)) -> Tensor:
    return torch.randn(2, CHANNELS, *size, device=DEVICE, dtype=dtype)


def results(block: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the output, all gradients and all buffers after a step."""
    block.zero_grad()
    image = image.clone().requires_grad_()
    output = block(image)
    output.backward(torch.linspace(-1, 1, output.numel()).to(output).view_as(output))
    gradients = {f"d{name}": each.grad for name, each in block.named_parameters()}
    return {"output": output, "dimage": image.grad, **gradients, **dict(block.named_buffers())}


def filters_of(block: nn.Module) -> list[nn.Conv2d]:
    return [each for each in block.modules() if isinstance(each, nn.Conv2d) and each.groups > 1]


def calls_of_branches(block: nn.Module) -> list[nn.Module]:
    """Return a list that the convolutions of a block are put in whenever one runs by itself."""
    called: list[nn.Module] = []
    for each in filters_of(block):
        original = each._conv_forward

        def recorded(*operands, original=original, each=each):
            called.append(each)
            return original(*operands)

        each._conv_forward = recorded
    return called


@pytest.mark.parametrize("mode", ["evaluation", "frozen"])
@pytest.mark.parametrize("name", BLOCKS)
def test_merged_branches_equal_the_branches(name: str, mode: str) -> None:
    """In evaluation, and where everything trains but the statistics."""
    merged, plain = pair(name)
    for block in (merged.double(), plain.double()):
        block.train(mode == "frozen")
        for each in block.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
    image = images()
    expected = results(plain, image)
    called = calls_of_branches(merged)
    actual = results(merged, image)
    assert called == []
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BLOCKS)
def test_in_training_mode_branches_run_as_before(name: str) -> None:
    merged, plain = pair(name)
    image = images(torch.float32)
    assert merged.training
    called = calls_of_branches(merged)
    actual, expected = results(merged, image), results(plain, image)
    assert set(called) == set(filters_of(merged))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["torch", "cuda"])
@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_half_precision_is_rounded_no_more_than_in_branches(dtype: torch.dtype, impl: str) -> None:
    """The error against float64 is at most twice that of the branches in PyTorch."""
    merged, plain = (block.to(dtype).eval() for block in pair(impl=impl))
    image = images(dtype)
    exact = results(copy.deepcopy(plain).double(), image.double())
    called = calls_of_branches(merged)
    actual, of_branches = results(merged, image), results(plain, image)
    assert called == []
    for name, wanted in exact.items():
        if not wanted.is_floating_point():
            continue
        assert actual[name].dtype == of_branches[name].dtype
        error, limit = ((each[name] - wanted).norm() for each in (actual, of_branches))
        assert error <= 2 * limit + torch.finfo(dtype).eps * wanted.norm(), name


def test_a_named_implementation_runs_or_raises() -> None:
    merged, plain = (block.double().eval() for block in pair(impl="cuda"))
    image = images()
    with pytest.raises(ValueError, match="impl='cuda' cannot serve this input"):
        merged(image)
    merged.merged_impl = "torch"
    torch.testing.assert_close(merged(image), plain(image))


def test_autocast_rounds_the_merged_filter_to_its_dtype(filters: list[Tensor]) -> None:
    merged, plain = (block.eval() for block in pair())
    image = images(torch.float32)
    for _ in range(2):
        with torch.no_grad(), torch.autocast(DEVICE, BF16):
            output = merged(image)
    assert output.dtype == filters[0].dtype == BF16 and len(filters) == 1
    torch.testing.assert_close(output.float(), plain(image), atol=0.1, rtol=0.1)


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that merged filters are put in when they are computed, rounded."""
    computed: list[Tensor] = []
    keep = inference_tables.keep

    def recorded(*arguments):
        tables = keep(*arguments)
        computed.append(tables[0])
        return tables

    monkeypatch.setattr(inference_tables, "keep", recorded)
    return computed


def test_filters_are_rounded_once(filters: list[Tensor]) -> None:
    """The branches are merged in float32, whatever their dtype is."""
    merged, _ = pair("normalised")
    for dtype in (FP16, torch.float64):
        without_gradients(merged.to(dtype).eval(), images(dtype))
    rounded, exact = filters
    assert (rounded.dtype, exact.dtype) == (FP16, torch.float64)
    torch.testing.assert_close(rounded, exact.half(), rtol=5e-4, atol=1e-7)


def without_gradients(block: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = block(image)
    return output


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "weight": lambda block: block.convolution_2.weight.data.mul_(2),
    "weight in place": lambda block: nn.init.ones_(block.large.weight),
    "gamma": lambda block: nn.init.ones_(block.norm_3.weight),
    "beta": lambda block: nn.init.ones_(block.large_norm.bias),
    "running mean": lambda block: block.norm_1.running_mean.add_(1),
    "running variance": lambda block: block.norm_1.running_var.add_(1),
    "eps": lambda block: setattr(block.norm_1, "eps", 1.0),
    "state": lambda block: block.load_state_dict(trained(Dilated()).state_dict()),
    "step of training": lambda block: results(block.train(), images(torch.float32)),
    "another layer": lambda block: setattr(block, "convolution_1", depthwise(3).to(DEVICE)),
    "double": lambda block: block.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen_by_the_filter_that_inference_keeps(
    change: str, filters: list[Tensor]
) -> None:
    merged, _ = pair()
    merged.eval()
    image = images(torch.float32)
    before = without_gradients(merged, image)
    assert torch.equal(without_gradients(merged, image), before) and len(filters) == 1
    CHANGES[change](merged)
    if change == "weight":
        torch.autograd.graph.increment_version(merged.convolution_2.weight)
    merged.eval()
    image = image.to(merged.large.weight.dtype)
    after = without_gradients(merged, image)
    assert len(filters) == 2
    plain = copy.deepcopy(merged)
    assert restore_branches(plain) == ("",)
    torch.testing.assert_close(after, without_gradients(plain, image), atol=1e-5, rtol=1e-5)
    assert change == "double" or not torch.equal(after, before)


def test_gradients_are_never_those_of_a_kept_filter(filters: list[Tensor]) -> None:
    merged, plain = (block.eval() for block in pair())
    image = images(torch.float32)
    without_gradients(merged, image)
    torch.testing.assert_close(results(merged, image), results(plain, image), atol=1e-4, rtol=1e-4)
    merged.requires_grad_(False)
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(merged(image).sum(), image)
    assert gradient.abs().sum() > 0 and len(filters) == 1


def test_captured_graphs_keep_no_filter_of_what_they_train(
    monkeypatch: pytest.MonkeyPatch, filters: list[Tensor]
) -> None:
    """Replays change parameters and statistics without a new version."""
    merged, _ = pair()
    image = images(torch.float32)
    for mode in (True, False):
        monkeypatch.setattr(inference_tables, "_is_capturing", lambda: True)
        block = copy.deepcopy(merged).train(mode)
        results(block, image)
        monkeypatch.setattr(inference_tables, "_is_capturing", lambda: False)
        block.eval()
        filters.clear()
        for _ in range(2):
            without_gradients(block, image)
        assert len(filters) == 2


def test_state_dicts_go_both_ways() -> None:
    merged, plain = pair()
    other = trained(Dilated())
    assert list(merged.state_dict()) == list(plain.state_dict())
    merged.load_state_dict(other.state_dict())
    plain.load_state_dict(merged.state_dict())
    image = images(torch.float32)
    for block in (merged.eval(), plain.eval(), other.eval()):
        torch.testing.assert_close(block(image), other(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_are_merged_blocks_of_their_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    merged, _ = pair(impl="torch")
    image = images(torch.float32)
    merged.eval()
    without_gradients(merged, image)
    twin = copied(merged)
    assert isinstance(twin, MergedBranches) and isinstance(twin, Dilated)
    assert twin.merged_impl == "torch" and twin.merged_from is Dilated
    assert torch.equal(twin(image), merged(image))
    with torch.no_grad():
        twin.large.weight.mul_(2)
    assert not torch.equal(without_gradients(twin, image), without_gradients(merged, image))


def test_blocks_are_restored() -> None:
    merged, plain = pair("activated")
    attributes = set(plain.__dict__)
    assert restore_branches(nn.Sequential(nn.ReLU(), merged)) == ("1",)
    assert type(merged) is Activated and set(merged.__dict__) == attributes
    image = images(torch.float32)
    called = calls_of_branches(merged.eval())
    assert torch.equal(merged(image), plain.eval()(image)) and len(called) == 2
    assert restore_branches(merged) == ()


@pytest.mark.skipif(
    torch.__version__ < (2, 11), reason="its Dynamo does not know properties of named tuples"
)
def test_compiled_and_exported_blocks_are_one_convolution() -> None:
    merged, plain = (block.eval() for block in pair())
    image = images(torch.float32)
    expected = plain(image)
    compiled = torch.compile(merged, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), expected, atol=1e-5, rtol=1e-5)
    program = torch.export.export(merged, (image,))
    torch.testing.assert_close(program.module()(image), expected, atol=1e-5, rtol=1e-5)
    convolutions = [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and "conv" in str(node.target)
    ]
    assert len(convolutions) == 1


def test_tracers_see_one_node() -> None:
    merged, _ = pair("activated")
    graph = torch.fx.symbolic_trace(nn.Sequential(merged)).graph
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0"]


# ---- What is merged, and what is left ------------------------------------------------------------


class Model(nn.Module):
    """Blocks under names of their own, one of them twice."""

    def __init__(self, **blocks: nn.Module) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, image: Tensor) -> Tensor:
        for block in self.children():
            image = block(image)
        return image


def test_report_names_blocks_and_reasons() -> None:
    block = Added(normed(depthwise(3)), normed(depthwise(5)))
    strided = Added(*(normed(nn.Conv2d(3, 3, 3, 2, 1, groups=3)) for _ in range(2)))
    model = Model(first=block, second=nn.Sequential(block, nn.ReLU()), third=strided)
    report = merge_branches(model)
    assert report.merged == ("first", "second.0") and list(report.left) == ["third"]
    assert str(report) == (
        "merged 2 (first, second.0)\nleft 1 (third): branches.0.0: stride is (2, 2), not 1"
    )
    assert merge_branches(model, "torch").merged == report.merged
    assert block.merged_impl == "torch"
    assert restore_branches(model) == report.merged


class Computed(nn.Module):
    """A block that does with two branches what a function says."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.large, self.small = normed(depthwise(5)), normed(depthwise(3))
        self.same, self.activation = nn.Identity(), nn.ReLU(inplace=True)
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(self, image)


def in_training(block: nn.Module, image: Tensor) -> Tensor:
    total = block.large(image) + block.small(image)
    return total + image if block.training else total


def by_value(block: nn.Module, image: Tensor) -> Tensor:
    return block.large(image) + block.small(image) if image.sum() > 0 else image


def edited(edit: Callable[[nn.Module], object]) -> nn.Module:
    block = Added(normed(depthwise(5)), normed(depthwise(3)))
    edit(block)
    return block


def grouped(groups: int, **settings) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, groups=groups, **{"padding": 1, **settings})


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "stride": (lambda: Added(depthwise(5), grouped(4, stride=2)), "stride is (2, 2), not 1"),
    "padding": (lambda: Added(depthwise(5), grouped(4, padding=0)), "padding (0, 0) is not 'same'"),
    "padding mode": (
        lambda: Added(depthwise(3), grouped(4, padding_mode="circular")),
        "'circular'",
    ),
    "groups": (lambda: Added(depthwise(5), grouped(2)), "not depthwise: 2 groups"),
    "statistics": (
        lambda: Added(
            depthwise(3),
            nn.Sequential(depthwise(3), nn.BatchNorm2d(CHANNELS, track_running_stats=False)),
        ),
        "branches.1.1: it has no running statistics",
    ),
    "hooks": (
        lambda: edited(lambda block: block.branches[0].register_forward_hook(lambda *_: None)),
        "branches.0: it has hooks, which a merged filter would leave out",
    ),
    "forward": (
        lambda: edited(lambda block: setattr(block, "forward", lambda image: image)),
        "its forward has been replaced or compiled, which would go on running",
    ),
    "training": (lambda: Computed(in_training), "its forward pass is another one in training mode"),
    "value": (lambda: Computed(by_value), "its forward pass cannot be traced: symbolically traced"),
    "extent": (
        lambda: Added(depthwise((33, 3)), depthwise((3, 3))),
        "no kernel for the merged filter: it takes filters that reach over up to 31 rows",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_sums_that_cannot_be_merged_are_left_with_a_reason(name: str) -> None:
    build, reason = LEFT[name]
    model = nn.Sequential(build(), nn.ReLU())
    kind, modes = type(model[0]), [each.training for each in model.modules()]
    report = merge_branches(model)
    assert report.merged == () and list(report.left) == ["0"] and reason in report.left["0"]
    assert type(model[0]) is kind
    assert modes == [each.training for each in model.modules()]


def test_pytorch_merges_no_crossed_filters() -> None:
    """The square around them has more taps than they have together."""
    crossed = Added(depthwise((31, 3)), depthwise((3, 31)))
    (reason,) = merge_branches(crossed, "torch").left.values()
    assert reason == "PyTorch would multiply by 961 taps of the merged filter, not by 186"
    assert merge_branches(crossed, "auto").merged == ("",)
    large = Added(depthwise(33), depthwise(5))
    assert merge_branches(large, "torch").merged == ("",)


def changed_image(block: nn.Module, image: Tensor) -> Tensor:
    """Return the sum of a branch of the image and of one of the image and that branch."""
    total = block.same(image)
    total += block.large(image)
    total += block.small(image)
    return total


def changed_branch(block: nn.Module, image: Tensor) -> Tensor:
    total = other = block.large(image)
    total += block.small(image)
    return total + other


def changed_before(block: nn.Module, image: Tensor) -> Tensor:
    block.activation(image)
    return block.large(image) + block.small(image)


NOT_MENTIONED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "one branch": lambda block, image: block.large(image),
    "nested": lambda block, image: block.large(block.small(image)) + block.large(image),
    "product": lambda block, image: (block.large(image) + block.small(image)) * image,
    "function": lambda block, image: torch.relu(block.large(image) + block.small(image)),
    "two outputs": lambda block, image: (block.large(image) + block.small(image), image),
    "activated branch": lambda block, image: block.large(image) + block.activation(image),
    "image changed in place": changed_image,
    "branch changed in place": changed_branch,
    "image changed before": changed_before,
}


@pytest.mark.parametrize("name", NOT_MENTIONED)
def test_other_blocks_are_not_mentioned(name: str) -> None:
    """None of these is a sum of convolutions of the input that layers alone follow."""
    report = merge_branches(Computed(NOT_MENTIONED[name]))
    assert report.merged == () and report.left == {}


# ---- What happens to a merged block later --------------------------------------------------------


def assert_branches_run(merged: nn.Module, plain: nn.Module, convolutions: int) -> None:
    image = images(torch.float32)
    called = calls_of_branches(merged)
    assert torch.equal(merged(image), plain(image)) and len(called) == convolutions


@pytest.mark.parametrize("path", ["branches.1", "branches.1.0", "branches.1.1"])
def test_hooks_of_branches_run(path: str) -> None:
    merged, plain = (block.eval() for block in pair("large and small"))
    seen: list[nn.Module] = []
    layer = merged.get_submodule(path)
    hook = layer.register_forward_hook(lambda layer, *_: seen.append(layer))
    assert_branches_run(merged, plain, 2)
    assert seen == [layer]
    hook.remove()
    merged(images(torch.float32))
    assert len(seen) == 1


def test_hooks_of_layers_after_the_sum_run() -> None:
    merged, plain = (block.eval() for block in pair("activated"))
    image, seen = images(torch.float32), []
    for block in (merged, plain):
        block.mix.register_forward_hook(lambda *call: seen.append(call[2]))
    torch.testing.assert_close(merged(image), plain(image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)


def test_blocks_that_merge_themselves_run_as_they_then_do() -> None:
    """RepLKNet's merge_kernel and timm's reparameterize remove the branches."""

    class Merging(Added):
        def forward(self, image: Tensor) -> Tensor:
            return self.merged(image) if hasattr(self, "merged") else super().forward(image)

    block = trained(Merging(normed(depthwise(5)), normed(depthwise(3)))).eval()
    assert merge_branches(block).merged == ("",)
    block.merged = depthwise(5).to(DEVICE)
    del block.branches
    image = images(torch.float32)
    assert torch.equal(block(image), block.merged(image))


def test_blocks_without_convolutions_run_as_they_are() -> None:
    block = trained(Added(depthwise(5), normed(depthwise(3)))).eval()
    assert merge_branches(block).merged == ("",)
    block.branches[0] = block.branches[1][0] = nn.Identity()
    image = images(torch.float32)
    assert torch.equal(block(image.clone()), image + block.branches[1](image))


def test_inputs_that_are_no_batch_of_images_reach_the_block() -> None:
    block = Added(depthwise(5), depthwise(3)).to(DEVICE)
    plain = copy.deepcopy(block)
    assert merge_branches(block).merged == ("",)
    image = images(torch.float32)
    assert torch.equal(block(image[0]), plain(image[0]))
    assert torch.equal(block(image=image), plain(image))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'image'"):
        block()


@pytest.mark.parametrize("first", [convert_depthwise, merge_branches])
def test_branches_may_be_converted_before_and_after(first: Callable[..., object]) -> None:
    """In training each branch runs on the kernels then, in evaluation all as one."""
    block = trained(BLOCKS["dilated"]())
    plain = copy.deepcopy(block)
    for convert in (first, convert_depthwise, merge_branches):
        convert(block, "torch")
    assert sum(isinstance(each, DepthwiseConv2d) for each in block.modules()) == 4
    image = images(torch.float32)
    for mode in (True, False):
        actual, expected = (results(each.train(mode), image) for each in (block, plain))
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_normalisation_may_be_replaced() -> None:
    """Frozen layers use running statistics in training mode too."""
    torchvision = pytest.importorskip("torchvision")
    merged, plain = pair()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(merged).eval()
    image = images(torch.float32)
    called = calls_of_branches(merged)
    torch.testing.assert_close(synchronised(image), plain.eval()(image), atol=1e-5, rtol=1e-5)
    for name, layer in list(merged.named_children()):
        if isinstance(layer, nn.SyncBatchNorm):
            frozen = torchvision.ops.FrozenBatchNorm2d(CHANNELS, layer.eps)
            frozen.load_state_dict(layer.state_dict())
            setattr(merged, name, frozen.to(DEVICE))
    torch.testing.assert_close(merged.train()(image), plain(image), atol=1e-5, rtol=1e-5)
    assert called == []
    merged.large_norm = nn.InstanceNorm2d(CHANNELS).to(DEVICE)
    merged(image)
    assert len(called) == 4


# ---- Blocks of timm ------------------------------------------------------------------------------

# A class, its arguments, and the number of its depthwise convolutions.
OF_TIMM: dict[str, tuple[str, str, tuple[object, ...], dict[str, object], int]] = {
    "RepViT": ("repvit", "RepVggDw", (4, 3), {}, 2),
    "RepViT, legacy": ("repvit", "RepVggDw", (4, 3), {"legacy": True}, 2),
    "MobileOne": ("byobnet", "MobileOneBlock", (4, 4), {"group_size": 1}, 3),
    "RepVGG": ("byobnet", "RepVggBlock", (4, 4), {"group_size": 1}, 2),
    "FastViT": ("fastvit", "MobileOneBlock", (4, 4, 3), {"group_size": 1}, 2),
    "FastViT, large": ("fastvit", "ReparamLargeKernelConv", (4, 4, 7, 1, 1, 3), {}, 2),
    "FastViT, positions": ("fastvit", "RepConditionalPosEnc", (4,), {}, 1),
    "iFormer": ("iformer", "RepCPE", (4,), {}, 1),
}


@pytest.mark.parametrize("name", OF_TIMM)
def test_blocks_of_timm_are_merged(name: str) -> None:
    models = pytest.importorskip("timm.models")
    module, kind, arguments, settings, convolutions = OF_TIMM[name]
    pytest.importorskip(f"timm.models.{module}", reason="this timm has no such model")
    if kind == "MobileOneBlock" and module == "byobnet":
        settings = {**settings, "num_conv_branches": 2}
    if module == "byobnet":
        settings = {**settings, "layers": models.byobnet.LayerFn()}
    block = trained(getattr(getattr(models, module), kind)(*arguments, **settings))
    plain = copy.deepcopy(block)
    report = merge_branches(block)
    assert len(report.merged) == 1 and report.left == {}
    image = torch.randn(2, 4, 9, 6, device=DEVICE)
    called = calls_of_branches(block)
    for mode in (True, False):
        called.clear()
        actual, expected = (results(each.train(mode), image) for each in (block, plain))
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        merged = not mode or not any(isinstance(each, nn.BatchNorm2d) for each in plain.modules())
        assert len(called) == (0 if merged else convolutions)


def test_models_must_be_modules() -> None:
    with pytest.raises(TypeError, match=r"module: got \[\], expected an nn.Module"):
        merge_branches([])
    with pytest.raises(TypeError, match=r"module: got None, expected an nn.Module"):
        restore_branches(None)
    with pytest.raises(ValueError, match="impl: got 'cudnn', expected one of"):
        merge_branches(Dilated(), "cudnn")
