"""Exported programs: saved and loaded, compiled ahead of time, and in other formats."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convmixer import ConvMixer
from convmixer_kernels import DepthwiseConv2d, convert_depthwise
from convmixer_kernels.exporting import decompose
from tests.helpers.depthwise_cases import DEVICE

pytestmark = pytest.mark.gpu

IMPL = "triton"


def small(impl: str = IMPL) -> nn.Module:
    """A converted model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Tanh()).to(DEVICE).eval()
    convert_depthwise(model, impl)
    return model


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def exported(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, inputs)


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_in_pytorch_a_layer_exports_as_a_convolution_does(impl):
    """Quantisers look for convolutions whose bias is a parameter, not a cast of one."""
    layer = DepthwiseConv2d(4, 5, impl=impl)
    ours = torch.export.export(layer, (torch.randn(2, 4, 8, 8),))
    plain = torch.export.export(nn.Conv2d(4, 4, 5, padding=2, groups=4), (torch.randn(2, 4, 8, 8),))
    assert operators(ours) == operators(plain) == ["aten.conv2d.default"]


@pytest.mark.parametrize("training", [True, False])
def test_saved_and_loaded(training, tmp_path):
    model, batch = small().train(training), image(2, 4, 8, 8)
    torch.export.save(torch.export.export(model, (batch,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    expected = model(batch)
    output = loaded(batch)
    assert torch.equal(output, expected)
    gradient = image(2, 4, 8, 8).flip(0)
    output.backward(gradient)
    expected.backward(gradient)
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


LOADING = f"""
import sys, torch
module = torch.export.load("decomposed.pt2").module()
print(module(torch.zeros(2, 4, 8, 8, device={DEVICE!r})).shape)
for load, name in ((torch.export.load, "program.pt2"), (torch.jit.load, "traced.pt")):
    try:
        load(name)
    except Exception as error:
        print(error)
assert "convmixer_kernels" not in sys.modules
"""


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_what_loads_without_this_package_and_what_says_that_it_is_missing(tmp_path):
    """PyTorch logs or raises the name of the operator, which begins with that of the package."""
    model, batch = small(), image(2, 4, 8, 8)
    program = exported(model, batch)
    decomposed = decompose(program)
    assert "convmixer_kernels.depthwise_conv2d.default" in operators(program)
    assert not any("convmixer_kernels" in name for name in operators(decomposed))
    torch.testing.assert_close(decomposed.module()(batch), model(batch), atol=1e-3, rtol=1e-3)
    torch.export.save(decomposed, tmp_path / "decomposed.pt2")
    torch.export.save(program, tmp_path / "program.pt2")
    torch.jit.save(torch.jit.trace(model, batch), tmp_path / "traced.pt")
    command = [sys.executable, "-c", LOADING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("torch.Size([2, 4, 8, 8])\n")
    # PyTorch 2.8 goes on to read an older format, and reports what that lacks.
    if torch.__version__ >= (2, 9):
        missing = "failed to resolve torch.ops.convmixer_kernels.depthwise_conv2d.default"
        assert missing in done.stdout + done.stderr
        assert "Please import the custom op" in done.stdout + done.stderr
    assert "Unknown builtin op: convmixer_kernels::depthwise_conv2d" in done.stdout


def test_fused_models_are_decomposed():
    model = ConvMixer(4, 2, 3, 2, 5, residual="both", dw_impl=IMPL).to(DEVICE).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.1)
    batch = image(2, 3, 8, 8)
    program = exported(model, batch)
    assert any("batch_norm_frozen" in name for name in operators(program))
    decomposed = decompose(program)
    assert not any("convmixer_kernels" in name for name in operators(decomposed))
    torch.testing.assert_close(decomposed.module()(batch), model(batch), atol=1e-3, rtol=1e-3)


def test_training_on_fused_operations_is_not_decomposed():
    model = ConvMixer(4, 1, 3, 2, 5, dw_impl=IMPL).to(DEVICE).train()
    program = torch.export.export(model, (image(2, 3, 8, 8),))
    with pytest.raises(
        ValueError, match=r"batch_norm_training.*export the model after model\.eval"
    ):
        decompose(program)


def test_onnx():
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnx and onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model, batch = small(), image(2, 4, 8, 8)
    program = torch.onnx.export(decompose(exported(model, batch)), verbose=False)
    convolutions = [node for node in program.model.graph if node.op_type == "Conv"]
    assert len(convolutions) == 1
    assert convolutions[0].attributes["group"].value == 4
    evaluator = reference.ReferenceEvaluator(program.model_proto)
    (output,) = evaluator.run(None, {evaluator.input_names[0]: batch.cpu().numpy()})
    expected = model(batch).detach().cpu()
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("impl", ["auto", "torch", IMPL])
def test_quantised_as_a_convolution_is(impl):
    """By a quantiser that looks for where an operator comes from, and for chains of them."""
    # A torchao that was made for another PyTorch does not import.
    pt2e = "torchao.quantization.pt2e"
    quantisation = pytest.importorskip(f"{pt2e}.quantize_pt2e", exc_type=ImportError)
    x86 = pytest.importorskip(f"{pt2e}.quantizer.x86_inductor_quantizer", exc_type=ImportError)

    def quantised(model: nn.Module, prepare=lambda program: program) -> nn.Module:
        with torch.no_grad():
            program = prepare(torch.export.export(model, (batch,), strict=True))
        quantiser = x86.X86InductorQuantizer()
        quantiser.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = quantisation.prepare_pt2e(program.module(), quantiser)
        prepared(batch)
        return quantisation.convert_pt2e(prepared)

    torch.manual_seed(0)
    batch = image(2, 4, 8, 8)
    plain = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model = copy.deepcopy(plain.to(DEVICE).eval())
    convert_depthwise(model, impl)
    ours = quantised(model, decompose if impl == IMPL else lambda program: program)
    theirs = quantised(plain)
    names = [[str(node.target) for node in graph.graph.nodes] for graph in (ours, theirs)]
    assert sorted(names[0]) == sorted(names[1])
    assert sum("quantize_per_channel" in name for name in names[0]) == 2
    torch.testing.assert_close(ours(batch), theirs(batch))
    error = (ours(batch) - plain(batch)).abs().max()
    assert 0 < error <= 0.05 * plain(batch).abs().max()


@pytest.mark.skipif(DEVICE == "cpu", reason="a C++ compiler takes 25 seconds for it")
def test_compiled_ahead_of_time(tmp_path: Path):
    """The operator alone: what else a model has takes a C++ compiler most of a minute."""
    model, batch = small()[:1], image(2, 4, 8, 8)
    package = torch._inductor.aoti_compile_and_package(
        exported(model, batch),
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    with torch.no_grad():
        output = torch._inductor.aoti_load_package(package)(batch)
    torch.testing.assert_close(output, model(batch))
