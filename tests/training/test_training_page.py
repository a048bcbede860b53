"""The page on training: its commands and calls are ones that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import convmixer
from convmixer import ConvMixer, list_variants, save_checkpoint
from convmixer.cli.parser import build_parser
from convmixer.config.fields import override
from convmixer.config.recipes import recipe_names
from tests.helpers.training import TINY

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
COMMANDS = re.findall(r"^(?:convmixer|torchrun .* -m convmixer) (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    parser, _ = build_parser()
    arguments, unknown = parser.parse_known_args(shlex.split(command))
    assert unknown == []
    recipe = getattr(arguments, "recipe", None)
    assert recipe in (None, "my.yaml", *recipe_names())
    assert getattr(arguments, "variant", None) in (None, *list_variants())


def test_options_in_sentences_exist():
    parser, commands = build_parser()
    for command in commands.values():
        command.complete()
    known = {name for each in (parser, *commands.values()) for name in each._option_string_actions}
    assert {option for option in re.findall(r"`(--[\w.]+)", PAGE)} <= known


def test_every_recipe_is_listed():
    listed = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert listed >= set(recipe_names())


def test_examples_in_python_run(monkeypatch, tmp_path):
    """The examples run with a small model and its weights in the place of the published ones."""
    weights = tmp_path / "weights.pt"
    save_checkpoint(ConvMixer(8, 32, 3, 2).state_dict(), weights)
    create_model = convmixer.create_model
    size = {"dim": 8, "kernel_size": 3, "patch_size": 2}

    def small(name, pretrained=None, **options):
        assert name in list_variants()
        return create_model(name, pretrained and weights, **size, **options)

    load_recipe = convmixer.load_recipe

    def tiny(name, overrides):
        return override(load_recipe(name, overrides), TINY)

    monkeypatch.setattr(convmixer, "create_model", small)
    monkeypatch.setattr(convmixer, "load_recipe", tiny)
    monkeypatch.chdir(tmp_path)
    scopes = []
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        scopes.append({"create_model": small})
        exec(block, scopes[-1])
    [scope] = [each for each in scopes if "features" in each]
    [trained] = [each for each in scopes if "summary" in each]
    assert 0 <= trained["summary"]["test_accuracy"] <= trained["scores"]["test_accuracy_top5"]
    assert scope["model"].num_classes == 5
    assert scope["features"].feature_info.module_name() == ["blocks.7", "blocks.15", "blocks.31"]
