"""Files appear whole or not at all."""

import json
import os

import pytest

from scav_jax.files import write_atomically, write_json


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "x.txt"
    write_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode()
    write_atomically(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_what_fails_half_way_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.txt"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_json_makes_its_folder_and_does_not_depend_on_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"b": 1, "a": [2]})
    write_json(tmp_path / "y.json", {"a": [2], "b": 1})
    assert json.loads((tmp_path / "y.json").read_text()) == {"a": [2], "b": 1}
    assert (tmp_path / "a" / "x.json").read_text() == (tmp_path / "y.json").read_text()
