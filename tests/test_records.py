"""What a run writes while it trains."""

import json
import sys

import numpy as np
import pytest

from scav_jax.base.errors import InputError
from scav_jax.training.config import Train
from scav_jax.training.records import Meter, Records


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_what_came_after_the_resumed_step_is_cut_off(tmp_path):
    records = Records(tmp_path, 0)
    for step in (5, 10, 15):
        records.write("train", step, {"loss": 1.0 / step})
    records.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # the line that a kill cut short
    resumed = Records(tmp_path, 10)
    resumed.write("train", 15, {"loss": 9.0})
    resumed.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (5, 0.2),
        (10, 0.1),
        (15, 9.0),
    ]


class Package:
    """A tracker as wandb and trackio are, which keeps what it is told."""

    def __init__(self):
        self.begun, self.told, self.finished = None, [], False

    def init(self, **about):
        self.begun = about
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.finished = True


def test_another_tracker_is_told_every_line_and_one_that_is_absent_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    package = Package()
    monkeypatch.setitem(sys.modules, "wandb", package)
    records = Records(tmp_path / "mine", 0, told="wandb", about={"seed": 3})
    records.write("train", 5, {"loss": 0.5})
    records.close()
    assert package.told == [(5, {"train/loss": 0.5})] and package.finished
    # Found again after an interruption.
    assert package.begun["id"] == "mine" and package.begun["resume"] == "allow"
    assert package.begun["config"] == {"seed": 3}
    assert not (tmp_path / "mine" / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=r"trackio: the package is not installed: `pip install"):
        Records(tmp_path / "mine", 0, told="trackio")
    with pytest.raises(InputError, match=r"train\.tracker: .* Did you mean 'wandb'"):
        Train(tracker="wandbb")


def test_the_meter_averages_and_keeps_the_latest_counter():
    meter = Meter(batch_size=4)
    for loss, skipped, in_row in ((1.0, 0, 0), (2.0, 1, 1), (6.0, 1, 0)):
        meter.add(
            {
                "loss": np.float32(loss),
                "skipped": np.int32(skipped),
                "skipped_in_row": np.int32(in_row),
            }
        )
    with meter.waiting():
        pass
    values = meter.summary()
    assert values["loss"] == pytest.approx(3.0)
    assert values["skipped"] == 1
    assert values["skipped_in_row"] == 1  # the worst of the interval, not the last
    assert 0 <= values["input_share"] <= 1 and values["examples_per_s"] > 0
