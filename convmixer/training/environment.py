"""The device, the precision, the threads and the model that settings ask for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch

from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.model.network import ConvMixer
from convmixer_kernels.dispatch import resolve

AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: `name` is something else, or the GPU is missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: {name} asked for, but PyTorch {torch.__version__} sees no GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device: {name} asked for, but there are {torch.cuda.device_count()} GPUs"
        )
    return device


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def effective_amp(config: Config, device: torch.device) -> str:
    """Return the mixed precision in use: that of the settings on a GPU, `none` on a CPU."""
    return config.amp if device.type == "cuda" else "none"


def replays_cuda_graphs(config: Config, device: torch.device) -> bool:
    """Return whether CUDA graphs replay training: as the settings say on a GPU, never on a CPU."""
    return config.cuda_graphs and device.type == "cuda"


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """Return the autocast context of the settings; without mixed precision it does nothing."""
    dtype = AMP_DTYPES.get(effective_amp(config, device))
    return torch.autocast(
        device.type,
        dtype or torch.bfloat16,
        enabled=dtype is not None,
        # A graph has to cast the weights in every replay.
        cache_enabled=not replays_cuda_graphs(config, device),
    )


def memory_format(config: Config, device: torch.device) -> torch.memory_format:
    """Return the memory format of images and model; "auto" is resolved.

    On a CPU a training step of ConvMixer takes PyTorch 1.03 to 2.2 times as long with contiguous
    tensors as with channels_last ones: depthwise convolutions of 3 x 3 to 15 x 15 in float32.
    """
    wanted = config.channels_last == "true"
    if config.channels_last == "auto":
        wanted = device.type == "cpu"
    return torch.channels_last if wanted else torch.contiguous_format


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use `count` threads inside the block; None leaves PyTorch's own choice."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def numerics(config: Config) -> Iterator[None]:
    """Let cuDNN choose algorithms as the settings say inside the block.

    With `deterministic`, operations of which PyTorch has no deterministic form raise an error.
    """
    backend = torch.backends.cudnn
    before = backend.benchmark, torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if config.deterministic:
        # cuBLAS reads this variable when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    backend.benchmark = config.cudnn_benchmark and not config.deterministic
    try:
        yield
    finally:
        backend.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1], warn_only=warn_only)


def depthwise_implementation(config: Config, device: torch.device) -> str:
    """Return the implementation that runs the fused depthwise convolutions; "auto" is resolved.

    The choice may depend on precision, memory format and size of the planes, so a tensor with those
    of the run decides.
    """
    model = config.model
    dtype = AMP_DTYPES.get(effective_amp(config, device), torch.float32)
    side = config.data.image_size // model.patch_size
    layout = memory_format(config, device)
    input = torch.empty(1, model.dim, side, side, dtype=dtype, device=device, memory_format=layout)
    weight = torch.empty(
        model.dim, 1, model.kernel_size, model.kernel_size, dtype=dtype, device=device
    )
    return resolve(input, weight, model.dw_impl, fused=True)


def build_model(config: Config, device: torch.device) -> ConvMixer:
    """Return the model on `device`, and try it on one image of zeros, not yet compiled.

    Raises:
        UsageError: the shape does not work, or the implementation does not on this device.
    """
    try:
        model = ConvMixer(**dataclasses.asdict(config.model)).to(device)
        model = model.to(memory_format=memory_format(config, device))  # type: ignore[call-overload]
        size = config.data.image_size
        image = torch.zeros(1, config.model.in_chans, size, size, device=device)
        with torch.no_grad(), autocast(config, device):
            model.eval()(image)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"model: {str(error).splitlines()[0]}") from error
    model.set_grad_checkpointing(config.gradient_checkpointing)
    if config.compile:
        model.compile()
    return model.train()
