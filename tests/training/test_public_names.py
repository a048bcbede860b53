"""The names of the package `convmixer`, and the modules that using them loads."""

import subprocess
import sys

import pytest

import convmixer

# An import of the package and the help of its commands do without these.
HEAVY = {"matplotlib", "numpy", "PIL", "sklearn", "timm", "torch", "torchvision", "tqdm", "yaml"}
LOADED = """
import sys
import convmixer.cli
for words in (["--help"], ["train", "--help"], ["train", "--epohcs", "3"]):
    try:
        convmixer.cli.main(words)
    except SystemExit:
        pass
print(*sorted({name.partition(".")[0] for name in sys.modules}), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("name", convmixer.__all__)
def test_every_name_is_found(name):
    assert name in dir(convmixer)
    value = getattr(convmixer, name)
    assert name == "__version__" or value.__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'convmixer' has no attribute 'ConvMixr'"):
        convmixer.ConvMixr  # noqa: B018


def test_help_loads_neither_pytorch_nor_the_packages_of_training():
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: convmixer")
    loaded = set(done.stderr.splitlines())
    assert "convmixer train: error: unknown option --epohcs (did you mean '--epochs'?)" in loaded
    assert "convmixer" in loaded and not HEAVY & loaded
