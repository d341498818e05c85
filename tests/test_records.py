"""What a run writes while it trains."""

import json

import numpy as np
import pytest

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
