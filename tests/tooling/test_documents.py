"""README and pages: links lead somewhere, examples run and agree, counts are those of the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import budget
from tests.helpers.fused_cases import DEVICE

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_functions_agree_with_what_they_are_equivalent_to() -> None:
    """The first four examples of README, on small tensors: each y is followed by an equal one."""
    examples = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    small = {'"cuda"': repr(DEVICE), "64, 768, 32, 32": "2, 6, 8, 8", "768": "6"}
    scope: dict[str, Any] = {}
    outputs = []
    torch.manual_seed(0)
    for example in examples[:4]:
        for text, smaller in small.items():
            example = example.replace(text, smaller)
        exec(example, scope)
        outputs.append(scope["y"].detach())
    convolved, by_pytorch, block, composed = outputs
    assert convolved.shape == (2, 6, 8, 8)
    torch.testing.assert_close(convolved, by_pytorch, atol=0.02, rtol=0.02)
    torch.testing.assert_close(block, composed, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("label", "kernel"),
    [
        ("forward, k = 9", "depthwise_forward<half, 9, 2, 4, true>"),
        ("forward, k = 15", "depthwise_forward<half, 15, 2, 4, true>"),
        ("weight and bias gradient, k = 9", "depthwise_weight_gradient<half, 9, 2, 4, true>"),
    ],
)
def test_counts_are_those_of_the_budget(label: str, kernel: str) -> None:
    rows = {(row.kernel, row.architecture): row.numbers for row in budget.read_table(budget.TABLE)}
    counts = rows[kernel, "90"]
    line = f"| {label} | {counts['registers']} | {counts['total']} | {counts['HMMA']} |"
    assert line in (ROOT / "docs" / "kernels.md").read_text()
