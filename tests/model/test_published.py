"""The numbers of the paper, character by character, and the facts that stand in two places."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from convmixer import ConvMixer
from convmixer.config.recipes import load_recipe
from convmixer.config.settings import OptimizerConfig
from convmixer.model.published import published_rows
from convmixer.model.variants import CIFAR10, IMAGENET
from convmixer.training.optimizer import weight_decay_groups

# A digest of every field of every row, as compared with independent copies of the tables.
CHECKSUMS = {
    1: "d972bef8beea35d8",
    2: "391c0a72ed277fa5",
    3: "eb297d684989ef0e",
    4: "e530e04d925e700f",
    5: "700c7edad8a6dbe0",
    6: "a4439dccd153c766",
    7: "c892a31ba7dbbb15",
    8: "228a343cec45c467",
}


@pytest.mark.parametrize("table", range(1, 9))
def test_rows_are_those_of_the_paper(table):
    rows = [
        (dataclasses.astuple(architecture), dataclasses.astuple(result))
        for architecture, result in published_rows()
        if result.table == table
    ]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == CHECKSUMS[table]


@pytest.mark.parametrize(
    ("preprocessing", "recipe"),
    [
        (IMAGENET, "imagenet"),
        (IMAGENET, "imagenet-a1"),
        (CIFAR10, "cifar10"),
        (CIFAR10, "cifar10-quick"),
        (CIFAR10, "columbia"),
    ],
)
def test_variants_are_evaluated_as_their_recipes_train_them(preprocessing, recipe):
    data = load_recipe(recipe).data
    assert preprocessing.input_size == data.image_size
    assert preprocessing.mean == tuple(data.mean)
    assert preprocessing.std == tuple(data.std)
    assert preprocessing.crop == data.crop_fraction
    assert preprocessing.interpolation == data.interpolation


def test_training_decays_what_the_model_says():
    model = ConvMixer(4, 2, 3, 2, 5)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = weight_decay_groups(model, OptimizerConfig(weight_decay=0.1))
    undecayed = [group["params"] for group in groups if group["weight_decay"] == 0]
    assert {named[id(parameter)] for parameter in undecayed[0]} == model.no_weight_decay()
