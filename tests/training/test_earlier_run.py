"""A run that an earlier version of the package began, before its modules lay in packages."""

import lzma
import shutil
from pathlib import Path

from convmixer import evaluate, train
from convmixer.training.run_folder import RunFolder
from convmixer.training.run_state import read_checkpoint

EARLIER_RUN = Path(__file__).parent / "earlier_run"
"""ConvMixer-4/1 on the digits, stopped before the last of four steps of the second epoch of two."""


def test_a_run_of_an_earlier_version_continues(tmp_path):
    out = tmp_path / "run"
    shutil.copytree(EARLIER_RUN, out)
    (out / "last.pt").write_bytes(lzma.decompress((out / "last.pt.xz").read_bytes()))
    folder = RunFolder(out)
    state, (first,) = read_checkpoint(folder.last), folder.load_metrics()
    assert (state["epoch"], state["step"]) == (1, 3)

    summary = train(folder.load_config(), out, resume=True, silent=True)
    assert summary["tested_epoch"] == 2 and summary["parameters"] == 154
    rows = folder.load_metrics()
    assert rows[0] == first and [row["epoch"] for row in rows] == [1, 2]
    # The second epoch has the images of its first three steps as well.
    assert 4 * 320 / rows[1]["seconds"] == rows[1]["images_per_second"]
    assert read_checkpoint(folder.last)["state_dict"].keys() == state["state_dict"].keys()
    assert evaluate(out, silent=True)["test_accuracy"] == summary["test_accuracy"]
