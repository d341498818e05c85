"""Names are bytes: each is used, or rejected by name while the rest goes on, from file to page."""

import argparse
import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from page_client import page_client
from test_model import film, write_run

from scav_jax.base import errors
from scav_jax.base.errors import InputError
from scav_jax.base.names import is_text, shown
from scav_jax.extract import __main__ as extract_program
from scav_jax.extract.manifest import read_csv
from scav_jax.features import store
from scav_jax.index import __main__ as index_program
from scav_jax.index import open_index
from scav_jax.index import program as index_commands
from scav_jax.inspect.__main__ import main as inspect
from scav_jax.retrieval import model
from scav_jax.search.__main__ import main as search
from scav_jax.web import app as web

NAMES = [
    *(
        "-x.mp4",
        "--all.mp4",
        " ends .mp4",
        "a\nb.mp4",
        "tab\there.mp4",
        "back\rto.mp4",
        "q'u\"o.mp4",
    ),
    *("se;mi,colon.mp4", "clip.mp4#1.000.mp4", "\U0001f600.mp4", "a\\b%s{x}.mp4", "\x1b[31m.mp4"),
    *(unicodedata.normalize(form, "café.mp4") for form in ("NFC", "NFD")),
    *("\u2028.mp4", "x" * 251 + ".mp4", "<b>&.mp4", "'; DROP TABLE.mp4"),
]
NO_TEXT = os.fsdecode(b"caf\xe9.mp4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    one = film(tmp_path_factory.mktemp("film") / "one.mp4", 1.2, seed=1)
    for name in NAMES:
        shutil.copy(one, folder / name)
    shutil.copy(one, folder / NO_TEXT)
    (folder / os.fsdecode(b"d\xe9")).mkdir()
    shutil.copy(one, folder / os.fsdecode(b"d\xe9") / "inside.mp4")
    return folder


@pytest.fixture(scope="module")
def data(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "data"
    extract_program.main(["--videos", str(videos), "--out", str(out), "--workers", "1"])
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def made(run):
    return model.load(run)


@pytest.fixture(scope="module")
def index(videos, run, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "i"
    index_program.main(["build", str(path), "--model", str(run), "--videos", str(videos)])
    return path


def test_names_are_shown_on_one_line():
    assert shown("a\nb\t\x1b[31m\u202e\u2028caf\udce9é\U0001f600") == (
        "a\\nb\\t\\x1b[31m\\u202e\\u2028caf\\xe9é\U0001f600"
    )
    assert is_text("é\U0001f600") and not is_text(NO_TEXT) and not is_text("\ud83d")


def test_every_name_is_in_the_data_set_or_rejected(data):
    clips = store.read(data, "all")
    assert sorted(clips.ids) == sorted(clips.sources) == sorted(NAMES)
    assert [clips[number].id for number in range(len(clips))] == clips.ids
    rejected = {row["file"]: row["reason"] for row in store.read_rejected(data)}
    assert rejected.keys() == {"caf\\xe9.mp4", "d\\xe9"}
    assert all(reason.startswith("name: its bytes are no text") for reason in rejected.values())


def test_a_list_of_clips_names_them_too(videos, tmp_path):
    """As spreadsheets write them; spaces belong to a name where a file is called so."""
    text = io.StringIO()
    rows = csv.writer(text, quoting=csv.QUOTE_ALL)
    rows.writerows([["file", "id"], *([name, f"{n}"] for n, name in enumerate(NAMES))])
    (tmp_path / "list.csv").write_bytes(text.getvalue().encode())
    assert [clip.file for clip in read_csv(tmp_path / "list.csv", videos)[0]] == NAMES
    (tmp_path / "list.csv").write_text("file\n-x.mp4  \n  --all.mp4\n")
    assert [c.file for c in read_csv(tmp_path / "list.csv", videos)[0]] == ["-x.mp4", "--all.mp4"]


def test_an_index_finds_them_all(index, videos, run, made, capsys):
    assert sorted(open_index(index).ids()) == sorted(NAMES) and open_index(index).verify()
    asked = [str(videos / NAMES[3]), os.fsencode(videos / NO_TEXT).decode(errors="surrogateescape")]
    assert search([str(index), *asked, "--model", str(run), "--json", "--k", "99"]) == 0
    for query in json.loads(capsys.readouterr().out)["queries"]:
        assert {hit["id"] for hit in query["hits"]} == set(NAMES)
        assert all(Path(hit["source"]) == videos / hit["id"] for hit in query["hits"])
    assert search([str(index), *asked, "--model", str(run), "--k", "99"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (len(NAMES) + 2) + 3 and any("a\\nb.mp4" in line for line in lines)
    query, opened = made.embed(asked[0]), open_index(index)
    for name in NAMES:
        (hits,) = opened.search(query, where="id = '{}'".format(name.replace("'", "''")))
        assert [hit.id for hit in hits] == [name]


def test_pages_show_them(index, videos, run, made, data, tmp_path):
    few = ["--k", "2", "--model", str(run), "--html", str(tmp_path / ("h" * 250 + ".html"))]
    search([str(index), str(videos / NO_TEXT), *few])
    assert "caf\\xe9.mp4" in Path(few[-1]).read_text()
    inspect([str(data), "--html", str(tmp_path / "i.html"), "--json", str(tmp_path / "i.json")])
    inspect(["--videos", str(videos), "--workers", "1", "--html", str(tmp_path / "v.html")])
    assert "xe9.mp4" in (tmp_path / "v.html").read_text()
    app = web.create_app(made, open_index(index, made.identity), workers=0)
    with page_client(app) as client:
        content = (videos / NAMES[0]).read_bytes()
        answer = client.post("/search", params={"name": "a\nb", "k": 40}, content=content)
        hits = answer.json()["hits"]
        assert {hit["id"] for hit in hits} == set(NAMES)
        assert all(client.get(hit["clip"]).status_code == 200 for hit in hits[:5])


def test_what_an_index_has_can_be_deleted(index, run, videos, tmp_path):
    shutil.copytree(index, tmp_path / "i")
    path = str(tmp_path / "i")
    index_program.main(["delete", path, "-x.mp4"])
    index_program.main(["delete", path, "--", "--all.mp4", NAMES[3]])
    assert sorted(open_index(path).ids()) == sorted(set(NAMES) - {"-x.mp4", "--all.mp4", NAMES[3]})
    index_program.main(["delete", path, *open_index(path).ids()])
    assert open_index(path).ids() == []
    with pytest.raises(SystemExit):
        index_program.main(["delete", "--help"])
    with pytest.raises(InputError, match="required: ids"):
        index_program.main(["delete", path])


# ---- roots -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def loaded_once(made, monkeypatch):
    """Every command would load the same model, and compile it, anew."""
    monkeypatch.setattr(index_commands, "load_as_asked", lambda _: made)


def command(*words):
    return index_program.main([str(word) for word in words])


@pytest.fixture
def cameras(tmp_path):
    """Two recordings that are called alike, each in its camera's folder."""
    for seed, name in enumerate(("a", "b")):
        (tmp_path / "media" / name).mkdir(parents=True)
        film(tmp_path / "media" / name / "IMG_0001.mp4", 1.2 + seed, seed=seed)
    return tmp_path / "media"


def test_ids_belong_to_the_root(cameras, run, tmp_path, capsys):
    path, by = tmp_path / "i", ("--model", run)
    (cameras / "a" / "notes.txt").touch()
    (cameras / "a" / "no_film.mp4").touch()
    command("build", path, *by, "--videos", cameras / "a")
    said = capsys.readouterr().err
    assert "other files, passed over: .txt 1\n" in said and "rejected 1: empty 1\n" in said
    for words in (
        (cameras / "b",),
        (cameras / "b" / "IMG_0001.mp4",),
        (cameras / "b", "--replace"),
    ):
        with pytest.raises(
            InputError, match=r"below .*/media/a, .*whose root \(--root\) holds both"
        ):
            command("add", path, *by, "--videos", *words)
    with pytest.raises(InputError, match=r"expected the root .*/media/a.*got .*/media"):
        command("add", path, *by, "--videos", cameras, "--root", cameras)
    assert open_index(path).ids() == ["IMG_0001.mp4"]

    both = tmp_path / "both"
    command("build", both, *by, "--videos", cameras / "a", "--root", cameras)
    command("add", both, *by, "--videos", cameras / "b")
    assert sorted(open_index(both).ids()) == ["a/IMG_0001.mp4", "b/IMG_0001.mp4"]
    for again in (cameras, cameras / "a", cameras / "a" / "IMG_0001.mp4"):
        with pytest.raises(InputError, match="are there already: 'a/IMG"):
            command("add", both, *by, "--videos", again)
    (cameras / "a_link").symlink_to(cameras / "a")
    with pytest.raises(InputError, match="are there already"):
        command("add", both, *by, "--videos", cameras / "a_link")
    command("build", both, *by, "--videos", cameras / "b")  # goes on: nothing left to do
    assert len(open_index(both)) == 2


def test_links_are_followed_to_the_one_file(cameras, run, tmp_path, capsys):
    """Folders and files that are links, within the root and out of it."""
    (cameras / "0").symlink_to(cameras / "b")
    (cameras / "a" / "same.mp4").symlink_to(cameras / "b" / "IMG_0001.mp4")
    (tmp_path / "elsewhere").mkdir()
    film(tmp_path / "elsewhere" / "c.mp4", 1.2, seed=5)
    (cameras / "out").symlink_to(tmp_path / "elsewhere")
    path, by = tmp_path / "i", ("--model", run)
    command("build", path, *by, "--videos", cameras)
    ids = ["a/IMG_0001.mp4", "b/IMG_0001.mp4", "out/c.mp4"]
    assert sorted(open_index(path).ids()) == ids
    assert "rejected a/same.mp4: link: it is the file b/IMG_0001.mp4" in capsys.readouterr().err
    for again in (cameras / "0", cameras / "out", cameras / "a" / "same.mp4"):
        with pytest.raises(InputError, match="are there already"):
            command("add", path, *by, "--videos", again)
    assert sorted(open_index(path).ids()) == ids


def test_one_part_of_a_file_has_one_id(cameras, run, tmp_path):
    command("build", tmp_path / "i", "--model", run, "--videos", cameras)
    (cameras / "a" / "clips.csv").write_text("file,id\nIMG_0001.mp4,first\n")
    with pytest.raises(InputError, match=r"in the index as 'a/IMG_0001.mp4', .*as 'a/first'"):
        command("add", tmp_path / "i", "--model", run, "--videos", cameras / "a")


def test_an_id_names_one_clip(cameras, run, tmp_path):
    command("build", tmp_path / "i", "--model", run, "--videos", cameras)
    film(cameras / "a" / "new.mp4", 1.2, seed=9)
    (cameras / "a" / "clips.csv").write_text("file,id\nnew.mp4,IMG_0001.mp4\n")
    for words in (("build",), ("add",), ("add", "--replace")):
        name, *options = words
        with pytest.raises(InputError, match=r"'a/IMG_0001.mp4' is a/IMG_0001.mp4 .*as a/new.mp4"):
            command(name, tmp_path / "i", "--model", run, "--videos", cameras / "a", *options)


def test_a_file_that_changed_is_not_taken_for_what_it_was(cameras, run, tmp_path, monkeypatch):
    path, by, file = tmp_path / "i", ("--model", run), cameras / "a" / "IMG_0001.mp4"
    command("build", path, *by, "--videos", cameras)
    film(file, 1.2, seed=7)
    monkeypatch.chdir(tmp_path)
    for name in ("build", "add"):
        with pytest.raises(InputError, match=r"1 of 2 have another content now: a/IMG_0001.mp4"):
            command(name, path, *by, "--videos", "media")
    command("add", path, *by, "--videos", "media/a", "--replace")
    command("build", path, *by, "--videos", "media")
    assert sorted(open_index(path).ids()) == ["a/IMG_0001.mp4", "b/IMG_0001.mp4"]


def test_clips_are_cut_as_the_index_was_begun(cameras, run, tmp_path):
    path, by = tmp_path / "i", ("--model", run)
    command("build", path, *by, "--videos", cameras / "a", "--root", cameras, "--clip-seconds", 1)
    for words, got in (((), "no --clip-seconds"), (("--clip-seconds", 2), "--clip-seconds 2")):
        with pytest.raises(InputError, match=f"expected --clip-seconds 1, .*got {got}"):
            command("add", path, *by, "--videos", cameras / "b", *words)
    command("add", path, *by, "--videos", cameras / "b", "--clip-seconds", 1.0)
    assert len(open_index(path)) == 3


def test_videos_may_move(cameras, run, tmp_path, capsys):
    path = tmp_path / "i"
    command("build", path, "--model", run, "--videos", cameras)
    cameras.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="expected the folder of the videos"):
        command("move", path, cameras)
    capsys.readouterr()
    command("move", path, tmp_path)
    assert "of 2 clips that were looked at, 2 have no file there" in capsys.readouterr().err
    command("move", path, tmp_path / "moved")
    assert not capsys.readouterr().err
    asked = str(tmp_path / "moved" / "a" / "IMG_0001.mp4")
    search([str(path), asked, "--model", str(run), "--json", "--filter", "source LIKE 'b/%'"])
    (hit,) = json.loads(capsys.readouterr().out)["queries"][0]["hits"]
    assert hit["source"] == str(tmp_path / "moved" / "b" / "IMG_0001.mp4")
    with pytest.raises(InputError, match="are there already"):
        command("add", path, "--model", run, "--videos", tmp_path / "moved")


def test_a_root_may_have_any_name(cameras, run, made, tmp_path, capsys):
    """What is kept of its files is below it."""
    folder, path = tmp_path / NO_TEXT, tmp_path / "i"
    cameras.rename(folder)
    command("build", path, "--model", run, "--videos", folder)
    command("info", path)
    assert "caf\\xe9.mp4" in capsys.readouterr().out
    asked = folder / "a" / "IMG_0001.mp4"
    search([str(path), str(asked), "--model", str(run), "--k", "1"])
    assert "caf\\xe9.mp4/" in capsys.readouterr().out
    app = web.create_app(made, open_index(path, made.identity), workers=0)
    with page_client(app) as client:
        answer = client.post("/search", params={"name": "a"}, content=asked.read_bytes())
        hits = answer.json()["hits"]
        assert {hit["id"] for hit in hits} == {"a/IMG_0001.mp4", "b/IMG_0001.mp4"}
        assert client.get(hits[0]["clip"]).status_code == 200


def test_features_bring_the_root_of_their_videos(data, videos, run, tmp_path):
    path = tmp_path / "i"
    words = ("--model", run, "--data", data, "--split", "all")
    command("build", path, *words, "--root", videos.parent)
    assert open_index(path).header.root == str(videos.parent)
    assert sorted(open_index(path).ids()) == sorted(f"{videos.name}/{name}" for name in NAMES)
    with pytest.raises(InputError, match="are there already"):
        command("add", path, "--model", run, "--videos", videos)
    with pytest.raises(InputError, match="lies elsewhere"):
        command("build", tmp_path / "j", *words, "--root", tmp_path)
    assert not (tmp_path / "j").exists()


def test_an_add_that_was_interrupted_goes_on(data, run, tmp_path, monkeypatch, capsys):
    path, words = tmp_path / "i", ("--model", run, "--data", data, "--split", "all")
    command("build", path, *words)
    command("delete", path, *open_index(path).ids())
    monkeypatch.setattr(index_commands, "CLIPS_AT_ONCE", 7)
    add, calls = index_commands.Index.add, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*given)

    monkeypatch.setattr(index_commands.Index, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command("add", path, *words)
    assert len(open_index(path)) == 7
    capsys.readouterr()
    command("add", path, *words)
    assert f"going on: 7 of {len(NAMES)} clips" in capsys.readouterr().out
    assert sorted(open_index(path).ids()) == sorted(NAMES)
    with pytest.raises(InputError, match="are there already"):
        command("add", path, *words)


@pytest.mark.parametrize("limit", [200, 3000])
def test_no_space_is_one_line_and_an_exit_code(data, run, tmp_path, limit, capsys):
    path, words = tmp_path / "i", ("--model", run, "--data", data, "--split", "all")
    for _ in range(2):  # everything is compiled before: JAX's cache would keep what is cut off
        command("build", path, *words)
        command("delete", path, *NAMES[:3])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(SystemExit) as ended:
            errors.run_program(lambda: command("build", path, *words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = [line for line in capsys.readouterr().err.splitlines() if "clip" not in line and line]
    assert ended.value.code == errors.EXIT_SYSTEM
    assert len(said) == 1 and said[0].startswith("error: the system does not take a file so large")
    assert sorted(open_index(path).ids()) == sorted(NAMES[3:]) and open_index(path).verify()
    command("build", path, *words)
    assert sorted(open_index(path).ids()) == sorted(NAMES)


def test_messages_and_stray_names_are_one_line(capsys, tmp_path):
    def main():
        raise InputError("no clip 'a\nb' in caf\udce9")

    with pytest.raises(SystemExit):
        errors.run_program(main)
    assert capsys.readouterr().err == "error: no clip 'a\\nb' in caf\\xe9\n"
    with pytest.raises(InputError, match="--out: expected a path that is text"):
        extract_program.main(["--videos", str(tmp_path), "--out", str(tmp_path / NO_TEXT)])


@pytest.mark.slow
def test_a_program_says_a_stray_name_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "scav_jax.index", "info", os.fsencode(tmp_path) + b"/caf\xe9"],
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == errors.EXIT_INPUT and done.stderr.count(b"\n") == 1
    assert b"caf\\xe9: expected an index" in done.stderr


def test_a_file_that_looks_like_an_option_is_told_how_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-q.wav").touch()
    with pytest.raises(InputError, match=r"that file is called \./-q\.wav"):
        search(["i", "a.wav", "-q.wav", "--model", "m"])
    assert isinstance(index_program.parse(["info", "i"]), argparse.Namespace)
