"""Files appear whole or not at all."""

import importlib
import json
import os
from pathlib import Path

import pytest

from scav_jax.base.errors import InputError
from scav_jax.base.files import (
    check_may_be_written,
    file_atomically,
    folder_atomically,
    write_atomically,
    write_json,
)
from scav_jax.extract.ledger import Ledger


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "x.txt"
    write_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode()
    write_atomically(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    link = tmp_path / "link"  # such as /dev/stdout
    link.symlink_to(path)
    write_atomically(link, "through")
    assert link.is_symlink() and path.read_text() == "through"


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


def test_what_will_be_refused_is_said_before_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("old")
    check_may_be_written(None, tmp_path / "x.txt", tmp_path / "new" / "y.txt")
    assert (tmp_path / "x.txt").read_text() == "old" and not (tmp_path / "new").exists()
    for path, what in ((tmp_path, "a folder"), (os.devnull, "no regular file")):
        with pytest.raises(InputError, match=f"{path}: expected the name of a file.*{what} is"):
            check_may_be_written(path)
    for below in ("x.txt/y.txt", "x.txt/a/y.txt"):
        with pytest.raises(InputError, match=r"y.txt: expected a folder at .*/x.txt, a file"):
            check_may_be_written(tmp_path / below)
    real = os.open

    def refused(path, flags, *rest, **more):  # root may write everywhere
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **more)

    def folder(path):
        with folder_atomically(path):
            pass

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "mkdir", refused)
    for write in (check_may_be_written, lambda path: write_atomically(path, "new"), folder):
        with pytest.raises(PermissionError) as caught:
            write(tmp_path / "x.txt")
        assert caught.value.filename == str(tmp_path / "x.txt")  # not that of a partial one


ELSEWHERE = ["--model", "nowhere", "--videos", "nowhere"]
FEW = ["--videos", "nowhere", "--validation", "0"]


@pytest.mark.parametrize(
    "program, words",
    [
        ("plan", ["--config", "nowhere.py", "--json", "FILE/x.json"]),
        ("index", ["build", "FILE/x", *ELSEWHERE]),
        ("index", ["tune", "nowhere", *ELSEWHERE, "--out", "FILE/x.json"]),
        ("datasets", ["vggsound", "FILE", *FEW, "--out", "FILE/x.csv"]),
    ],
)
def test_programs_ask_whether_they_may_write_before_they_begin(program, words, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("abcdefghijk,21,a dog,train\n")
    main = importlib.import_module(f"scav_jax.{program}.__main__").main
    with pytest.raises(InputError, match=f"expected a folder at {file}, a file is there"):
        main([word.replace("FILE", str(file)) for word in words])


def test_json_makes_its_folder_and_does_not_depend_on_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"b": 1, "a": [2]})
    write_json(tmp_path / "y.json", {"a": [2], "b": 1})
    assert json.loads((tmp_path / "y.json").read_text()) == {"a": [2], "b": 1}
    assert (tmp_path / "a" / "x.json").read_text() == (tmp_path / "y.json").read_text()


@pytest.mark.parametrize("path", [".", "..", "/", "", "x/.."])
@pytest.mark.parametrize("written", [file_atomically, folder_atomically, Ledger.beside])
def test_what_is_written_beside_another_has_a_name(tmp_path, monkeypatch, path, written):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a file or folder by its name"), written(Path(path)):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["fsync", "replace", None])
def test_a_folder_appears_whole_and_durable_or_not_at_all(tmp_path, monkeypatch, broken):
    path, calls = tmp_path / "x", []
    (tmp_path / ".x.partial" / "of a kill").mkdir(parents=True)

    def fill():
        with folder_atomically(path) as folder:
            (folder / "below").mkdir()
            (folder / "below" / "y.txt").write_text("y")
            assert not path.exists()

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            act = getattr(os, name)

            def told(*given, name=name, act=act):
                calls.append(name)
                if name == broken:
                    raise OSError(28, "No space left on device")
                return act(*given)

            patch.setattr(os, name, told)
        if broken:
            with pytest.raises(OSError, match="No space"):
                fill()
            assert not list(tmp_path.iterdir())
            return
        fill()
    assert calls == ["fsync"] * 3 + ["replace", "fsync"]  # the file, two folders; the name
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        *("x", "x/below", "x/below/y.txt")
    ]
    with monkeypatch.context() as patch:

        def refuse(old, new):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "replace", refuse)
        with (
            pytest.raises(OSError, match="No space"),
            folder_atomically(path, replacing=True) as folder,
        ):
            (folder / "z.txt").write_text("z")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert [p.name for p in path.iterdir()] == ["below"]  # the old one is back
    with folder_atomically(path, replacing=True) as folder:
        (folder / "z.txt").write_text("z")
    assert [p.name for p in path.iterdir()] == ["z.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
