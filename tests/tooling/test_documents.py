"""README, pages and examples: what they link to and name exists, and their code runs."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import budget

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
FOLDERS = ("benchmarks", "convmixer", "convmixer_kernels", "csrc", "docs", "examples", "tests")
FILES = [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(page: Path) -> list[str]:
    """Return the anchors of the headings of a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """Find every source file that a page names in backticks, in whatever folder."""
    names = set(re.findall(r"`([\w./-]+\.(?:py|pyi|cuh?|cpp|h|toml|cff))`", page.read_text()))
    known = [f"/{path.relative_to(ROOT).as_posix()}" for path in FILES]
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in known)] == []


def _examples(page: Path) -> list[Any]:
    codes = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [pytest.param(code, id=f"{page.name}-{i}") for i, code in enumerate(codes, 1)]


@pytest.mark.parametrize(
    "example", [each for page in PAGES if page.name != "training.md" for each in _examples(page)]
)
def test_examples_run_as_pasted(
    example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run each by itself; those of training.md need files and have a test of their own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(example, scope)
    if "depthwise_conv2d_gelu_batch_norm" in scope:
        _check_comments(**scope)


def _check_comments(
    x: Tensor, weight: Tensor, norm: torch.nn.Module, y: Tensor, z: Tensor, **_: object
) -> None:
    """Compare the outputs with what the comments of the example say that they are."""
    convolved = F.conv2d(x, weight, padding="same", groups=64)
    torch.testing.assert_close(y, convolved, atol=0.05, rtol=0.02)
    torch.testing.assert_close(z, norm(F.gelu(y.float())).to(x) + x, atol=0.05, rtol=0.02)


def test_api_page_is_current() -> None:
    """Compare the page with the one that `make api` would write."""
    written = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert written["PAGE"].read_text() == written["page"]()


@pytest.mark.parametrize("name", ["RepLKNet-31B", "VAN-B2"])
def test_page_of_models_is_current(name: str) -> None:
    """Compare lines of the page with those that `make models` would write."""
    written = runpy.run_path(str(ROOT / "docs" / "make_models.py"))
    assert written["row"](name, written["MODELS"][name]) in written["PAGE"].read_text()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("convert_timm_model.py", "converted 12 (stages.0.blocks.0.conv_dw"),
        ("fused_block.py", "output (8, 64, 16, 16)"),
        ("train.py", "test accuracy"),
    ],
)
def test_scripts_run(
    script: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run each script of examples/, which prints what it has done."""
    path = ROOT / "examples" / script
    assert len(path.read_text().splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert said in capsys.readouterr().out


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
