"""The tables and the learning-rate sweep of the CIFAR-10 reproduction at Columbia University."""

from __future__ import annotations

from convmixer.studies.study import Report, Row, Study

EPOCHS = 30
SWEEP_EPOCHS = 10
TITLES = {
    "columbia-1": "ConvMixer-256/8",
    "columbia-2": "Effect of kernel size",
    "columbia-3": "Effect of patch size",
    "columbia-4": "Kernel and patch size beside the paper's results",
    "columbia-figure-2": "Learning rate",
}
_NAMES = {
    "columbia-1": "Columbia, table I",
    "columbia-2": "Columbia, table II",
    "columbia-3": "Columbia, table III",
    "columbia-4": "Columbia, table IV",
    "columbia-figure-2": "Columbia, figure 2",
}
_REPORTS = (
    Report("columbia", "Columbia", "CIFAR-10"),
    Report("paper", "the paper", "CIFAR-10"),
)
_SIZES = "kernel {c.model.kernel_size}, patch {c.model.patch_size}"


def _kernel(name: str, size: int, columbia: float, paper: float) -> Row:
    return Row(name, {"model.kernel_size": size}, {}, (columbia, paper))


def _patch(name: str, size: int, columbia: float, paper: float, **model: int) -> Row:
    changes = {f"model.{argument}": value for argument, value in model.items()}
    return Row(name, changes, {"model.patch_size": size}, (columbia, paper))


_KERNEL, _PATCH = "kernel {c.model.kernel_size}", "patch {c.model.patch_size}"
_ROWS = {
    "columbia-1": (Row("baseline", reported=(88.94, 95.88)),),
    "columbia-2": (
        _kernel(_KERNEL, 3, 85.65, 93.61),
        _kernel(_KERNEL, 5, 86.98, 95.19),
        _kernel(_KERNEL, 7, 88.40, 95.80),
        _kernel(_KERNEL, 9, 88.94, 95.88),
    ),
    "columbia-3": (
        _patch(_PATCH, 1, 89.97, 95.88),
        _patch(_PATCH, 2, 86.30, 95.00),
        _patch(_PATCH, 4, 80.96, 92.61),
    ),
    "columbia-4": (
        _kernel(f"kernel ablation: {_SIZES}", 3, 85.65, 93.61),
        _kernel(f"kernel ablation: {_SIZES}", 9, 88.94, 95.88),
        _patch(f"patch ablation: {_SIZES}", 1, 89.97, 95.88, kernel_size=9),
        _patch(f"patch ablation: {_SIZES}", 4, 80.96, 92.61, kernel_size=9),
        Row("baseline", {"model.kernel_size": 9}, reported=(88.98, 95.88)),
    ),
    # The text shows the sweep in a picture without numbers, around the 0.001 that it chose.
    "columbia-figure-2": tuple(
        Row(
            "learning rate {c.optimizer.lr:g}",
            ratios={"optimizer.lr": factor, "epochs": SWEEP_EPOCHS / EPOCHS},
        )
        for factor in (0.1, 0.3, 1.0, 3.0, 10.0)
    ),
}


def columbia_study(name: str) -> Study:
    """Return one of the studies of `TITLES`.

    On the recipe columbia they have the settings of the text. On another recipe patch sizes,
    learning rates and the epochs of the sweep are multiples of its own.
    """
    rows = _ROWS[name]
    return Study(
        name=_NAMES[name],
        title=TITLES[name],
        rows=rows,
        own_recipe="columbia",
        reports=_REPORTS if rows[0].reported else (),
    )
