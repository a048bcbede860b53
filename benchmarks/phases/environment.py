"""The phase that notes the machine."""

from __future__ import annotations

import shutil

from benchmarks.lib import machine
from benchmarks.phases.context import Visit

_TOOLS = ("nvcc", "g++", "ninja", "compute-sanitizer", "ncu")


def environment(visit: Visit) -> None:
    visit.facts.add("machine", **machine.describe(visit.device))
    visit.facts.add("tools", **{tool: shutil.which(tool) for tool in _TOOLS})
