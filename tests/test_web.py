"""The search page: what HTTP clients get, what attackers do not, and a real browser that plays."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uploads_that_hang
from page_client import PAGE, page_client
from test_media import click_track, flash_frames
from test_model import RATE, film, write_run, write_sound

from scav_jax import distances
from scav_jax.base.errors import InputError
from scav_jax.extract import jobs
from scav_jax.extract.containers.opening import Unusable
from scav_jax.index import Hit, Index
from scav_jax.index.searching import Report
from scav_jax.report import match, playable, search_page
from scav_jax.retrieval import model
from scav_jax.retrieve import sequence_distances
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.web import __main__ as program
from scav_jax.web import app as app_module
from scav_jax.web import library, progress, searcher, uploads

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Everything(Index):
    """An index in memory that compares with all; what `scav_jax.index` does on disk."""

    def __init__(self, made, embedded):
        self.made, self.embedded, self.asked = made, embedded, []
        self.report = Report("sequence")

    def __len__(self):
        return len(self.embedded)

    def follow(self):
        return False

    def search(self, queries, direction, k, retrieval, where):
        self.asked.append((direction, k, retrieval, where))
        if where == "label = 'crash'":
            raise RuntimeError("a secret path /etc")
        e = self.embedded
        if direction == "both":  # the sum, each on its own scale
            direction, alone = "a2v", queries
            scales = [self._distances(alone, one) for one in ("a2v", "v2a")]
            rows = sum((d - d.mean(axis=1, keepdims=True)) / d.std(axis=1) for d in scales)
        else:
            rows = self._distances(queries, direction)
        return [
            [
                Hit(e.ids[i], e.sources[i], e.starts[i], e.ends[i], e.labels[i], float(row[i]), n)
                for n, i in enumerate(np.argsort(row)[:k].tolist(), 1)
            ]
            for row in rows
        ]

    def clip(self, name):
        e = self.embedded
        rows = zip(e.ids, e.sources, e.starts, e.ends, strict=True)
        return {id: {"source": s, "start": a, "end": b} for id, s, a, b in rows}.get(name)

    def contents(self, ids):
        return {}

    def _distances(self, queries, direction):
        e = self.embedded
        pair = (e.visual, queries.audio) if direction == "a2v" else (queries.visual, e.audio)
        found = sequence_distances(AudioVisual(*pair), *self.made.distance)
        return np.asarray(found.T if direction == "a2v" else found)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for seed, name in enumerate(("a & <b>.mp4", "c.mkv", "d.mp4")):
        film(folder / name, 3, seed=seed)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return model.load(write_run(tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(scope="module")
def index(made, films):
    return Everything(made, made.embed(films))


@pytest.fixture(scope="module")
def app(made, index):
    return app_module.create_app(made, index, workers=0, max_bytes=2**20)


@pytest.fixture(scope="module")
def client(app):
    with page_client(app) as client:
        yield client


def ask(client, path, **options):
    content = path if isinstance(path, bytes) else path.read_bytes()
    return client.post("/search", params=options, content=content)


def leftovers(app):
    return [path.name for path in app.state.folder.iterdir() if path.name.startswith("query-")]


def test_clips_that_are_added_are_found_without_a_restart(made, films, tmp_path):
    from scav_jax.index import create, open_index

    first, second = made.embed(films / "c.mkv"), made.embed(films / "d.mp4")
    writer = create(tmp_path / "i", identity=made.identity, distance=made.distance)
    writer.add(first)
    served = open_index(tmp_path / "i", made.identity)
    app = app_module.create_app(made, served, workers=0, max_bytes=2**20)
    with page_client(app) as client:

        def found():
            answer = ask(client, films / "c.mkv", name="c.mkv", direction="v2a", k=9).json()
            count = re.search(r"(\d+) clips", client.get("/").text)[1]
            return [hit["id"] for hit in answer["hits"]], count

        assert found() == (first.ids, "1")
        writer.add(second)
        ids, count = found()
        assert sorted(ids) == sorted(first.ids + second.ids) and count == "2"
        writer.delete(first.ids)
        assert found() == (second.ids, "1")
        assert not served.follow()
        (tmp_path / "i").rename(tmp_path / "away")
        create(tmp_path / "i", identity="another", distance=made.distance).add(first)
        for answer in (ask(client, films / "c.mkv"), client.get("/")):
            assert answer.status_code == 400 and "another one lies there" in answer.json()["error"]


# ---- searches -----------------------------------------------------------------------------------


STREAMS = {"a2v": ["audio"], "v2a": ["visual"], "both": ["audio", "visual"]}


@pytest.mark.parametrize("direction", STREAMS)
def test_a_clip_asks_and_is_answered(client, app, index, films, direction):
    """The answer is the index's; clips play, the whole of them and parts; curves come after."""
    answer = ask(client, films / "c.mkv", name="c.mkv", direction=direction, k=2)
    assert answer.status_code == 200
    found = answer.json()
    assert index.asked[-1] == (direction, 2, "exact", None)
    query = index.made.embed(films / "c.mkv", streams=STREAMS[direction])
    expected = index.search(query, direction, 2, "exact", None)[0]
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
    np.testing.assert_allclose([h["score"] for h in found["hits"]], [h.score for h in expected])
    assert [hit["source"] for hit in found["hits"]] == [Path(h.source).name for h in expected]
    expected_end = pytest.approx(3.0, abs=0.02)  # of the stream that asks
    assert found["query"] == {"name": "c.mkv", "start": 0.0, "end": expected_end}
    assert (found["direction"], found["note"]) == (direction, "")
    assert sorted(found["streams"]) == ["audio", "visual"]  # the page has tabs
    for hit in found["hits"]:
        clip = client.get(hit["clip"])
        assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")
        part = client.get(hit["clip"], headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, clip.content[10:20])
    curves = client.get(found["curves"]).json()
    means = [float(re.search(r"over time: mean ([\d.]+)", one)[1]) for one in curves["curves"]]
    if direction != "both":
        np.testing.assert_allclose(means, [hit["score"] for hit in found["hits"]], rtol=5e-3)
    assert 'class="curve"' not in found["html"] and "one scale" in curves["told"]
    (own,) = re.findall(r'asking.*?src="(/clip/\w+)"', found["html"])
    asked = client.get(own)  # its picture too, where its sound asks
    assert asked.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(asked.content)) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
    assert leftovers(app) == []


def test_stills_are_the_first_pictures_of_the_clips(client, films):
    from PIL import Image

    found = ask(client, films / "c.mkv", name="c.mkv", k=3).json()
    stills = re.findall(r'poster="data:image/jpeg;base64,([^"]*)"', found["html"])
    clips = re.findall(r'<video src="([^"]*)"', found["html"])
    assert len(stills) == len(clips) == 4
    for one, clip in zip(stills, clips, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"), float)
        with av.open(io.BytesIO(client.get(clip).content)) as container:
            first = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert picture.shape == first.shape and np.abs(picture - first).mean() < 12
    late = playable.still_picture(films / "d.mp4", 0.48, 3.0)  # the flash
    assert late != playable.still_picture(films / "d.mp4", 0.0, 3.0)
    assert playable.still_picture(films / "gone.mp4", 0.0, 1.0) == ""


def test_a_clip_of_the_index_asks_as_its_file_does(client, app, index, films):
    sent = ask(client, films / "c.mkv", name="c.mkv", direction="v2a", k=3).json()
    (clip,) = [one for one in index.embedded.ids if "c.mkv" in one]
    answer = client.post("/search", params={"clip": clip, "direction": "v2a", "k": 3})
    assert answer.status_code == 200
    found = answer.json()
    assert found["query"]["name"] == clip and found["note"] == ""
    for name in ("id", "score", "clip"):
        assert [one[name] for one in found["hits"]] == [one[name] for one in sent["hits"]]
    answer = client.post("/search", params={"clip": "/etc/passwd"})
    assert answer.status_code == 400
    assert answer.json() == {"error": "clip '/etc/passwd': expected the id of a clip of the index"}
    assert leftovers(app) == []


def test_how_far_a_search_is_can_be_asked(client, app, films, monkeypatch):
    """Each stage under the name that the page gave, and nothing of it afterwards."""
    name, seen = "0f" * 16, []
    teller = progress.Progress.teller

    def looking(self, given):
        tell = teller(self, given)

        def told(stage):
            tell(stage)
            seen.append(self.of(name))

        return told

    monkeypatch.setattr(progress.Progress, "teller", looking)
    assert client.get(f"/progress/{name}").json() == {}
    assert ask(client, films / "d.mp4", name="d.mp4", job=name).status_code == 200
    assert [one.get("words") for one in seen] == [*progress.STAGES, None]
    assert [one["stage"] / one["of"] for one in seen[:-1]] == pytest.approx(
        [n / 6 for n in range(1, 6)]
    )
    assert client.get(f"/progress/{name}").json() == {}
    for other in ("x", "0f" * 17, "../clip"):
        seen.clear()
        held = progress.Progress()
        held.teller(other)(1)
        assert held.of(other) == {}
    assert ask(client, b"no film", name="x", job=name).status_code == 400
    assert client.get(f"/progress/{name}").json() == {}


def test_tokens_of_curves_are_given_out_and_forgotten(client, films, monkeypatch):
    monkeypatch.setattr(searcher, "KEPT", 1)
    first, second = (
        ask(client, films / "d.mp4", name="d.mp4", k=1).json()["curves"] for _ in range(2)
    )
    assert client.get(first).status_code == client.get("/curves/x").status_code == 404
    assert client.get(second).status_code == 200
    monkeypatch.setattr(search_page, "curves_of", None)
    answer = client.get(second)  # whatever goes wrong is a line
    assert answer.status_code == 500
    assert answer.json() == {"error": "that failed; the server's log says why"}


def test_sounds_and_silent_films_ask_by_what_they_have(client, tmp_path):
    sound = write_sound(tmp_path / "a.mp3", "libmp3lame", click_track(2, RATE, [0.5]))
    assert ask(client, sound, name="a.mp3").json()["direction"] == "a2v"
    silent = film(tmp_path / "b.mp4", 2, seed=1, track=None)
    assert ask(client, silent, name="b.mp4").json()["direction"] == "v2a"
    answer = ask(client, sound, name="a.mp3", direction="v2a")
    assert answer.status_code == 400
    words = "a.mp3: expected a file with a picture, it has none; search by its sound instead"
    assert answer.json() == {"error": words}
    answer = ask(client, silent, name="b.mp4", direction="a2v")
    assert "with a sound, it has none; search by its picture" in answer.json()["error"]


def test_long_files_are_cut_and_it_is_said(client, films, monkeypatch):
    monkeypatch.setattr(searcher, "QUERY_SECONDS", 1.5)
    found = ask(client, films / "d.mp4", name="d.mp4", start=0.5).json()
    assert (found["query"]["start"], found["query"]["end"]) == (0.5, 2.0)
    assert found["note"] == "Only 0.5 to 2 s of 3.0 s were used."
    answer = ask(client, films / "d.mp4", name="d.mp4", start=9)
    assert answer.json()["error"].startswith("start: expected less than the 3.0 s")


def test_a_wide_film_is_small_on_the_page_and_too_many_pixels_are_refused(
    client, tmp_path, monkeypatch
):
    size = (1024, 60)  # wider than any screen: only the height was bounded once
    wide = film(
        tmp_path / "wide.mp4", 2, seed=1, size=size, frames=flash_frames(2, [0.5], size=size)
    )
    found = ask(client, wide, name="wide.mp4", direction="v2a", k=1).json()
    (own,) = re.findall(r'asking.*?src="(/clip/\w+)"', found["html"])
    with av.open(io.BytesIO(client.get(own).content)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (426, 24)
    monkeypatch.setattr(playable, "MAX_PIXELS", 50 * 64 * 32)  # as a long clip has
    with av.open(io.BytesIO(playable.make_playable(wide, 0.0, 2.0).content)) as container:
        stream = container.streams.video[0]
        assert stream.width * stream.height <= 1.3 * 64 * 32
    for name, most in (("FRAME_PIXELS", 1024 * 60 - 1), ("PIXELS", 1024 * 60 * 49)):
        with monkeypatch.context() as patch:
            patch.setattr(uploads, name, most)
            patch.setattr(jobs, "prepare", None)  # nothing is decoded
            answer = ask(client, wide, name="wide.mp4", direction="v2a")
            assert answer.status_code == 400
            assert "million pixels a frame and" in answer.json()["error"]
    assert ask(client, wide, name="wide.mp4", direction="a2v").status_code == 200  # its sound


@pytest.mark.slow
def test_a_file_that_hangs_holds_nobody_up(made, index, films, monkeypatch, tmp_path):
    """Others search and read the page meanwhile; what eats memory or crashes costs its answer."""
    monkeypatch.setattr(uploads, "_decoding", uploads_that_hang.decoding)
    monkeypatch.setenv("GO_ON", str(tmp_path / "go on"))
    app = app_module.create_app(made, index, workers=1)
    ended = []
    with page_client(app) as client:

        def search(name):
            answer = ask(client, films / "d.mp4", name=name, k=1)
            ended.append(name)
            return answer.status_code, answer.json().get("error", "")

        hangs = threading.Thread(target=search, args=("hangs",))
        hangs.start()
        assert client.get("/").status_code == 200
        assert search("d.mp4") == (200, "")
        for name, words in (("eats", "more than 3 GiB of memory"), ("crashes", "crashed: the dec")):
            status, said = search(name)
            assert (status, said.startswith(f"{name}: cannot be used: ")) == (400, True)
            assert words in said
        assert ended == ["d.mp4", "eats", "crashes"]
        (tmp_path / "go on").touch()
        hangs.join()
        assert ended[-1] == "hangs"
    monkeypatch.setattr(searcher, "ASKING_AT_ONCE", 0)
    full = app_module.create_app(made, index, workers=0)
    with page_client(full) as client:
        assert ask(client, films / "d.mp4", name="d.mp4").status_code == 503


def test_bad_uploads_get_clear_words_and_leave_nothing(client, app, films):
    whole = (films / "d.mp4").read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n"
    before = set(os.listdir(app.state.folder))
    for content, status, words in (
        (b"", 400, "the file is empty"),
        (b"hello " * 999, 400, "x.mp4: expected a sound or a video, this cannot be read (not a re"),
        (playlist, 400, "x.mp4: expected a sound or a video"),
        (whole[: len(whole) // 3], 400, "x.mp4: "),
        (b"\0" * (2**20 + 1), 413, "the file is too large: expected at most 1 MiB"),
    ):
        answer = ask(client, content, name="../../x.mp4")
        assert (answer.status_code, answer.json()["error"][: len(words)]) == (status, words)
        assert "\n" not in answer.json()["error"]
        assert "/etc" not in answer.text and "query-" not in answer.text
        assert set(os.listdir(app.state.folder)) == before
    for options, words in (
        ({"k": 0}, "k: expected a whole number from 1 to 50, got 0"),
        ({"k": "many"}, "k: expected a number, got 'many'"),
        ({"direction": "up"}, "direction: expected one of a2v, v2a, both"),
        ({"direction": "both", "retrieval": "hybrid:9"}, "retrieval: expected exact or sequence"),
        ({"where": "labl = 'x'"}, "filter \"labl = 'x'\": expected a condition on id, source, st"),
        ({"start": -1}, "start: expected seconds"),
        ({"start": "nan"}, "start: expected seconds"),
        ({"where": "nonsense"}, "filter 'nonsense': expected a condition"),
        ({"where": "start < 1; DROP"}, "filter 'start < 1; DROP': expected a condition"),
        ({"where": "regexp_match(label, '(a*)*b')"}, 'filter "regexp_match'),
        ({"retrieval": "best"}, "retrieval: expected one of"),
        ({"retrieval": f"hybrid:{'9' * 5000}"}, "retrieval: expected one of"),
    ):
        answer = ask(client, b"not read", **options)
        assert answer.status_code == 400 and answer.json()["error"].startswith(words)
    assert ask(client, b"x", name="/").json()["error"].startswith("the file: expected a sound")
    answer = ask(client, films / "d.mp4", where="label = 'crash'")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert leftovers(app) == []


def test_a_body_without_a_length_is_cut_off(client, app):
    """Nobody has to say how much comes."""
    sent = []

    def endless():
        for _ in range(400):
            sent.append(1)
            yield b"\0" * 2**14

    answer = client.post("/search", content=endless())
    assert answer.status_code == 413
    assert leftovers(app) == []


# ---- what must not be ---------------------------------------------------------------------------


def test_only_tokens_are_answered(client, films):
    for path in (
        "/clip/x",
        "/clip/../../etc/passwd",
        "/clip/%2e%2e%2fetc%2fpasswd",
        "/clip/" + str(films / "c.mkv").replace("/", "%2f"),
        "/../etc/passwd",
        "/films/c.mkv",
    ):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["error"], path
        assert b"root:" not in answer.content


def test_other_sites_and_other_names_are_refused(client, films):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answer = client.post("/search", content=b"x", headers=headers)
        assert answer.status_code == 403
    assert client.post("/search", content=b"x", headers={"Origin": PAGE}).status_code == 400
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert client.get("/", headers={"Host": host}).status_code == 400
    for host in ("127.0.0.1", "localhost:7860", "[::1]:7860"):
        assert client.get("/", headers={"Host": host}).status_code == 200


def test_roots_bound_what_is_played(made, index, films, tmp_path):
    """Sources elsewhere, links that lead elsewhere and relative sources that climb are not."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    shutil.copy(films / "d.mp4", inside / "d.mp4")
    shutil.copy(films / "d.mp4", outside / "secret.mp4")
    (inside / "link.mp4").symlink_to(outside / "secret.mp4")
    (tmp_path / "inside2").mkdir()
    shutil.copy(films / "d.mp4", tmp_path / "inside2" / "d.mp4")
    held = library.Library([inside])
    assert held.locate("d.mp4") == (inside / "d.mp4").resolve()
    assert held.locate(str(inside / "d.mp4")) == (inside / "d.mp4").resolve()
    for source in (
        str(outside / "secret.mp4"),
        "../outside/secret.mp4",
        "link.mp4",
        str(inside / "link.mp4"),
        str(inside / ".." / "outside" / "secret.mp4"),
        str(tmp_path / "inside2" / "d.mp4"),
    ):
        with pytest.raises(Unusable) as caught:
            held.locate(source)
        assert caught.value.reason.startswith("it does not lie below"), source
    with pytest.raises(Unusable, match="missing"):
        held.locate("gone.mp4")
    with pytest.raises(Unusable, match="its folder is not known"):
        library.Library().locate("d.mp4")
    with pytest.raises(InputError, match="--roots: expected folders"):
        library.Library([tmp_path / "none"])

    app = app_module.create_app(made, index, roots=[inside], workers=0)
    with page_client(app) as client:
        found = ask(client, films / "d.mp4", name="q.mp4").json()
        assert all("does not lie below" in hit["clip"] for hit in found["hits"])
        assert found["html"].count("cannot be played") == 3
        assert str(films) not in json.dumps(found)


@pytest.fixture
def index_of_one(made, films, tmp_path):
    """An index of one file, `tmp_path / "d.mp4"`."""
    shutil.copy(films / "d.mp4", tmp_path / "d.mp4")
    return Everything(made, made.embed(tmp_path / "d.mp4", root=tmp_path))


def test_a_file_that_goes_away_is_said(made, index_of_one, films, tmp_path):
    app = app_module.create_app(made, index_of_one, workers=0)
    with page_client(app) as client:
        (hit,) = ask(client, films / "d.mp4", name="q.mp4").json()["hits"]
        (tmp_path / "d.mp4").unlink()
        answer = client.get(hit["clip"])
        assert answer.status_code == 410 and "missing" in answer.json()["error"]
        folder = app.state.folder
        assert folder.is_dir()
    assert not folder.exists()  # temporary files go with the server


def test_a_page_of_a_search_does_not_show_another_film(made, films, tmp_path):
    from scav_jax.index import create
    from scav_jax.search import asking

    for name in ("c.mkv", "d.mp4"):
        shutil.copy(films / name, tmp_path / name)
    index = create(tmp_path / "i", identity=made.identity, distance=made.distance)
    index.add(made.embed(tmp_path, root=tmp_path))
    query = made.embed(films / "d.mp4")
    shutil.copy(films / "c.mkv", tmp_path / "d.mp4")
    html = asking.page(asking.ask(index, query, "a2v", 2, "exact"), query, made, index)
    assert html.count("cannot be played: it is another file now than was indexed") == 1
    assert html.count('class="curve"') == 1 and html.count("<video") == 2  # the query, the other


def test_a_file_that_becomes_another_one_is_not_played(made, index_of_one, films, tmp_path):
    """Neither by what the index knows of it, nor behind a token of what it was."""
    from scav_jax.base.documents import content_sample

    app = app_module.create_app(made, index_of_one, workers=0)
    with page_client(app) as client:
        (hit,) = ask(client, films / "d.mp4", name="q.mp4").json()["hits"]
        assert client.get(hit["clip"]).status_code == 200
        (again,) = ask(client, films / "c.mkv", name="q.mkv").json()["hits"]
        assert again["clip"] == hit["clip"]
        sample = content_sample(tmp_path / "d.mp4")
        shutil.copy(films / "c.mkv", tmp_path / "d.mp4")
        (other,) = ask(client, films / "d.mp4", name="q.mp4").json()["hits"]
        assert other["clip"] != hit["clip"]
        shutil.copy(films / "a & <b>.mp4", tmp_path / "d.mp4")
        answer = client.get(other["clip"])
        assert answer.status_code == 410 and "another file now" in answer.json()["error"]
        index_of_one.contents = lambda ids: dict.fromkeys(ids, sample)
        (other,) = ask(client, films / "d.mp4", name="q.mp4").json()["hits"]
        assert other["clip"] == "it is another file now than was indexed"
        answer = client.post("/search", params={"clip": index_of_one.embedded.ids[0]})
        assert answer.status_code == 400 and "another file now" in answer.json()["error"]
        shutil.copy(films / "d.mp4", tmp_path / "d.mp4")
        (hit,) = ask(client, films / "d.mp4", name="q.mp4").json()["hits"]
        assert client.get(hit["clip"]).status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ({}, 200, slice(None)),
        ({"Range": "bytes=0-"}, 206, slice(None)),
        ({"Range": "bytes=5-9"}, 206, slice(5, 10)),
        ({"Range": "Bytes = 5 - 99999999"}, 206, slice(5, None)),
        ({"Range": "bytes=-7"}, 206, slice(-7, None)),
        ({"Range": "bytes=-99999999"}, 206, slice(None)),
        ({"Range": "bytes=9-5"}, 200, slice(None)),
        ({"Range": "bytes=x-"}, 200, slice(None)),
        ({"Range": "bytes=-"}, 200, slice(None)),
        ({"Range": "bytes"}, 200, slice(None)),
        ({"Range": f"bytes={'9' * 5000}-"}, 200, slice(None)),
        ({"Range": "clips=0-3"}, 200, slice(None)),
        ({"Range": "bytes=0-3,7-9"}, 200, slice(None)),
        ({"Range": "bytes=99999999-"}, 416, None),
        ({"Range": "bytes=-0"}, 416, None),
        ({"Range": "bytes=5-9", "If-Range": "TAG"}, 206, slice(5, 10)),
        ({"Range": "bytes=5-9", "If-Range": "Mon, 01 Jan 2024 00:00:00 GMT"}, 200, slice(None)),
        ({"Range": "bytes=5-9", "If-Range": '"other"'}, 200, slice(None)),
        ({"If-None-Match": '"x", W/TAG'}, 304, slice(0)),
        ({"If-None-Match": "*", "Range": "bytes=5-9"}, 304, slice(0)),
        ({"If-None-Match": '"x"'}, 200, slice(None)),
    ],
)
def test_a_clip_is_given_out_as_http_has_it(client, films, asked, status, part):
    address = ask(client, films / "d.mp4", name="d.mp4").json()["hits"][0]["clip"]
    whole = client.get(address)
    size, tag = len(whole.content), whole.headers["etag"]
    headers = {name: value.replace("TAG", tag) for name, value in asked.items()}
    answer = client.get(address, headers=headers)
    assert answer.status_code == status and answer.headers["x-content-type-options"] == "nosniff"
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{size}" and answer.json()["error"]
        return
    assert answer.content == whole.content[part] and answer.headers["etag"] == tag
    if status == 206:
        first, last, _ = part.indices(size)
        assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{size}"
    head = client.head(address, headers=headers)
    assert (head.status_code, head.content) == (304 if status == 304 else 200, b"")
    assert status == 304 or head.headers["content-length"] == str(size)
    refused = client.delete(address)
    assert refused.status_code == 405 and "GET" in refused.headers["allow"]


def test_names_cannot_break_the_page(client, films):
    name = "<img src=x onerror=alert(1)>.mp4"
    found = ask(client, films / "d.mp4", name=name).json()
    assert "<img" not in found["html"] and "&lt;img" in found["html"]
    assert "a &amp; &lt;" in found["html"]
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "<script>" not in page.text and "<style>" not in page.text and "style=" not in page.text
    assert page.headers["x-content-type-options"] == "nosniff"


def test_old_clips_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "ENCODED", 2)
    held = library.Library()
    held.folder = tmp_path
    tokens = [held.keep(playable.Playable("audio", "audio/mp4", b"%d" % n)) for n in range(3)]
    assert held.encoded(tokens[0]) is None
    kept = [held.encoded(token)[0] for token in tokens[1:]]
    assert sorted(os.listdir(tmp_path)) == sorted(tokens[1:])
    for _ in range(2):
        held.keep(playable.Playable("audio", "audio/mp4", b"more"))
    assert held.encoded(tokens[1]) is None
    assert [file.read() for file in kept] == [b"1", b"2"]  # who has begun to read goes on
    for file in kept:
        file.close()


# ---- the command --------------------------------------------------------------------------------


def test_loopback_is_the_default_and_known():
    options = program.parse(["--index", "i", "--model", "m"])
    assert (options.host, options.port) == ("127.0.0.1", 7860)
    loopback = ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost")
    assert [program.is_loopback(host) for host in loopback] == [True] * 5
    assert not any(map(program.is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))


@pytest.mark.parametrize(
    "server", [lambda: socket.create_server(("127.0.0.1", 0)), lambda: program.bind("127.0.0.1", 0)]
)
def test_a_port_that_is_taken_is_said(server):
    with server() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: cannot listen there"):
            program.bind("127.0.0.1", port)
    with pytest.raises(InputError, match="--port: expected 0 to 65535"):
        program.bind("127.0.0.1", 70000)


SERVED = """
import sys
sys.modules["uvloop"] = None  # which is not needed, and has handlers of its own
from scav_jax.base.errors import run_program
from scav_jax.web import __main__ as program, app
async def sending(scope, receive, send):
    if scope["type"] == "http":
        print("asked", flush=True)
        while (await receive())["type"] == "http.request":
            pass
def main():
    bound = program.bind("127.0.0.1", 0)
    print(bound.getsockname()[1], flush=True)
    app.LEAVING_S = 0.3
    app.serve(sending, bound)
run_program(main)
"""


@pytest.mark.slow
def test_ctrl_c_ends_it_though_a_file_is_being_sent():
    words = [sys.executable, "-c", SERVED]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, **pipes) as process:
        address = "127.0.0.1", int(process.stdout.readline())
        with socket.create_connection(address) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 0


# ---- curves and clips ---------------------------------------------------------------------------


def random_pair(seed=0):
    random = np.random.default_rng(seed)
    shapes = ((9, 7), (8, 5))  # steps, of them real
    values = [random.normal(size=(steps, 4)).astype(np.float32) for steps, _ in shapes]
    return [
        sequences(jnp.asarray(one), jnp.int32(length))
        for one, (_, length) in zip(values, shapes, strict=True)
    ]


@pytest.mark.parametrize("direction", ["visual_to_audio", "audio_to_visual"])
def test_the_mean_of_the_curve_is_the_distance(direction):
    visual, audio = random_pair()
    curve = match.match_curve(
        "euclidean", {"resample": direction}, visual, audio, visual_seconds=0.7, audio_step_s=0.16
    )
    pair = partial(distances.find("euclidean", {}).pair, resample=direction)
    distance = jax.jit(pair)(visual, audio)
    np.testing.assert_allclose(curve.values.mean(), distance, rtol=1e-5)
    expected = 0.16 * (np.arange(5) + 0.5)
    if direction == "audio_to_visual":
        expected = 0.1 * (np.arange(7) + 0.5)
    np.testing.assert_allclose(curve.times, expected)
    assert curve.values.std() > 0.1


def test_the_curve_of_a_path_is_the_cost_along_it():
    visual, audio = random_pair(1)
    curve = match.match_curve("dtw", {}, visual, audio, visual_seconds=1.0, audio_step_s=0.16)
    v, a = np.asarray(visual.values)[:7], np.asarray(audio.values)[:5]
    cost = ((v[:, None] - a[None]) ** 2).mean(axis=-1)
    on_path = np.asarray(distances.alignment("dtw", visual, audio))[:7, :5] > 0
    expected = [cost[on_path[:, step], step].mean() for step in range(5)]
    np.testing.assert_allclose(curve.values, expected, rtol=1e-5)


def test_playable_clips_are_the_clip(films):
    """Duration, streams, time: the flash of the second film is at 0.48 s."""
    shown = []
    for _ in range(2):
        made = playable.make_playable(films / "d.mp4", 0.2, 2.2)
        with av.open(io.BytesIO(made.content)) as container:
            assert {stream.type for stream in container.streams} == {"video", "audio"}
            frames = list(container.decode(video=0))
        shown.append([(float(f.time), f.to_ndarray(format="gray").mean()) for f in frames])
    assert len(shown[0]) == 50
    assert max(shown[0], key=lambda frame: frame[1])[0] == pytest.approx(0.28, abs=0.021)
    # What is seen is the same each time; the bytes are the encoder's business.
    np.testing.assert_allclose(shown[0], shown[1], atol=0.5)
    sound = playable.make_playable(films / "d.mp4", 0.0, 2.0, kinds=("audio",))
    assert (sound.kind, sound.type) == ("audio", "audio/mp4")
    with pytest.raises(Unusable):
        playable.make_playable(films / "gone.mp4", 0.0, 1.0)


@pytest.fixture(scope="module")
def found_page(made, index, films):
    """A page with a search in each direction; one of the clips is not there any more."""
    query = made.embed(films / "c.mkv")
    searches = []
    for direction, stream in (("a2v", "visual"), ("v2a", "audio")):
        (hits,) = index.search(query, direction, 3, "exact", None)
        latents = match.latents_from_files(made, hits, stream)
        hits[-1] = Hit(**{**vars(hits[-1]), "source": "/gone/x.mp4"})
        options = {"direction": direction, "model": made, "latents": latents}
        searches.append(search_page.make_search(query, hits, **options))
        means = [result.curve.values.mean() for result in searches[-1].results]
        np.testing.assert_allclose(means, [hit.score for hit in hits], rtol=1e-4)
    return search_page.results_page(searches, "Found <here>")


def test_the_page_of_results_is_self_contained(found_page):
    sources = re.findall(r'(?:src|poster)="([^"]*)"', found_page)
    assert len(sources) == 12 and all(source.startswith("data:") for source in sources)
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 6
    assert "http:" not in found_page and "https:" not in found_page
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", found_page)
    assert "Found &lt;here&gt;" in found_page
    assert found_page.count("cannot be played: missing: no such file") == 2
    assert found_page.count('class="curve"') == 6
    assert "default-src 'none'" in found_page


def test_searches_that_cannot_be_shown_say_so(made, index, films):
    query = made.embed(films / "c.mkv", streams=["audio"])
    (hits,) = index.search(query, "a2v", 2, "exact", None)
    with pytest.raises(InputError, match="expected a query with a picture"):
        search_page.make_search(query, hits, direction="v2a", model=made)
    with pytest.raises(InputError, match="expected latents of the 2 hits, got 1"):
        search_page.make_search(query, hits, direction="a2v", model=made, latents=[None])
    none = search_page.make_search(query, [], direction="a2v", model=made)
    assert "Nothing was found" in search_page.results_page([none])


# ---- a real browser -----------------------------------------------------------------------------


class Browser:
    """Chromium without a window, driven through its DevTools protocol over a pipe."""

    def __init__(self, profile):
        from_us, to_us = os.pipe(), os.pipe()
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio"]
        arguments += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        command = f'exec "{CHROMIUM}" "$@" 3<&{from_us[0]} 4>&{to_us[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "browser", *arguments],
            pass_fds=(from_us[0], to_us[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us[0])
        os.close(to_us[1])
        self._out, self._in = from_us[1], to_us[0]
        self._buffer, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        size = {"width": 1200, "height": 1500, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                read = os.read(self._in, 2**16)
                assert read, "the browser has ended"
                self._buffer += read
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression):
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=60):
        end = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.1)
        return value

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def key(self, key, code=None):
        code = code or key
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code)

    def choose(self, selector, file):
        self.call("DOM.enable")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screenshot(self, path):
        content = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(content))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(made, index):
    """The application behind a real server."""
    import uvicorn

    app = app_module.create_app(made, index, workers=0)
    bound = program.bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"{PAGE}:{bound.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    bound.close()


TIMES = "[...document.querySelectorAll('.search video, .search audio')].map(c => c.currentTime)"


def play_and_check(browser, clips):
    """Everything plays in step, the mark moves, one sound is heard, the keyboard works."""
    ready = f"[...document.querySelectorAll('.search video, .search audio')].slice(0, {clips})"
    browser.wait(f"{ready}.length === {clips} && {ready}.every(c => c.readyState >= 3)")
    browser.value("document.querySelector('.search').focus()")
    browser.key(" ", "Space")
    browser.wait(f"{TIMES}[0] > 0.8", 20)
    assert browser.value(f"{ready}.every(c => !c.paused)")
    times = browser.value(TIMES)[:clips]
    assert max(times) - min(times) < 0.3, times
    marks = browser.value(
        "[...document.querySelectorAll('.search .now')].map(m => +m.getAttribute('x1'))"
    )
    assert marks[0] > 50
    browser.key(" ", "Space")
    browser.wait(f"{ready}.every(c => c.paused)", 10)
    stopped = browser.value("document.querySelector('.search output').textContent")
    browser.key("ArrowRight")
    assert browser.value("document.querySelector('.search output').textContent") != stopped
    heard = f"{ready}.map(c => !c.muted)"
    for number in (1, 0):
        browser.key(str(number))
        assert browser.value(heard) == [place == number for place in range(clips)]


HITS = "[...document.querySelectorAll('.found .hit')].map(card => card.dataset.id)"
BOX = "(one) => Math.round(one.getBoundingClientRect()"
TOP = f"[...document.querySelectorAll('.hit')].map({BOX}.top))"
TITLE = "document.getElementById('title').textContent"


def found(browser, words=" found in "):
    """Waits for the end of a search, and gives the ids of what it found."""
    browser.wait(f"document.getElementById('status').textContent.includes('{words}')")
    return browser.value(HITS)


@pytest.mark.slow
def test_in_a_browser_a_sound_that_is_chosen_is_searched_and_plays(
    browser, address, films, tmp_path
):
    sound = write_sound(tmp_path / "knock.wav", "pcm_s16le", click_track(3, RATE, [0.5], seed=1))
    browser.open(address)
    assert browser.value("document.getElementById('go').disabled") is True
    browser.choose("#file", sound)  # nothing else
    assert len(found(browser)) == 3
    assert browser.value(f"{TITLE}").endswith("sound of knock.wav")
    assert browser.value("document.getElementById('tabs').hidden")  # a sound asks in one way
    stills = "[...document.querySelectorAll('.found video')].map(v => v.poster.slice(0, 15))"
    assert browser.value(stills) == ["data:image/jpeg"] * 3  # there before any film is
    browser.wait("document.querySelectorAll('.curve').length === 3")
    play_and_check(browser, 4)
    browser.screenshot(tmp_path / "web.png")
    assert (tmp_path / "web.png").stat().st_size > 20_000

    (tmp_path / "no.wav").write_text("this is no sound\n" * 99)
    browser.choose("#file", tmp_path / "no.wav")
    words = browser.wait(
        "!document.getElementById('error').hidden && document.getElementById('error').textContent"
    )
    assert words.startswith("no.wav: expected a sound or a video")


@pytest.mark.slow
def test_in_a_browser_links_and_tabs_search_again(browser, address, films, index):
    """A clip of the index asks; its link finds the same; a file's link has the settings only."""
    browser.open(address + "?k=2&where=start%20%3C%201")
    told = "document.getElementById('status').textContent"
    assert browser.value(told).startswith("The settings are those of the link")
    browser.choose("#file", films / "d.mp4")
    assert len(found(browser)) == 2 and index.asked[-1] == ("a2v", 2, "exact", "start < 1")
    link = "document.getElementById('link')"
    assert "cannot hold a file" in browser.value(f"{link}.textContent")
    for direction in ("both", "v2a"):
        browser.value("document.querySelector('#tabs [aria-selected=true]').focus()")
        browser.key("ArrowLeft")  # from the first to the last, then to the one before
        browser.value("document.activeElement.click()")
        browser.wait(f"{link}.search.includes('direction={direction}')")
        found(browser)
        assert index.asked[-1][:2] == (direction, 2)
        chosen = "document.querySelector('#tabs [aria-selected=true]')"
        assert browser.value(f"document.activeElement === {chosen}")
        assert browser.value(f"{chosen}.dataset.direction") == direction

    asked, name = browser.value("document.querySelectorAll('.ask').length"), browser.value(HITS)[1]
    assert asked == 2
    browser.value("document.querySelectorAll('.ask')[1].click()")
    browser.wait(f"{TITLE}.endsWith({json.dumps(name)})")
    ids = found(browser)
    here = browser.value("location.href")
    assert browser.value(f"{link}.href") == here and "clip=" in here and "k=2" in here
    browser.open(address)
    browser.open(here)
    assert found(browser) == ids and browser.value(TITLE).endswith(name)
    browser.value("document.getElementById('where').value = 'labl = 1'")
    browser.value("document.getElementById('go').click()")
    words = browser.wait("document.getElementById('error').textContent")
    assert "id, source, start, end or label" in words and "Did you mean 'label'?" in words


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser_all_has_a_name_and_fits(browser, address, films, width):
    """By the browser's own tree for screen readers; controls are in line, no card is alone."""
    size = {"height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.call("Emulation.setDeviceMetricsOverride", width=width, **size)
    try:
        browser.open(address)
        browser.choose("#file", films / "c.mkv")
        found(browser)
        browser.wait("document.querySelectorAll('.curve').length === 3")
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "slider", "combobox", "spinbutton", "link", "tab", "Video"}
        controls = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and node.get("role", {}).get("value") in roles
        ]
        assert {role for role, _ in controls} == roles
        assert all(name for _, name in controls), controls
        assert browser.value("document.documentElement.scrollWidth") <= width
        tops = browser.value(TOP)
        last = tops.count(tops[-1])
        assert last == (1 if width == 390 else 3) and len(tops) == 4
        if width > 500:
            bottoms = browser.value(
                "[...document.querySelectorAll('.options input, .options select, #go')]"
                f".map({BOX}.bottom))"
            )
            assert len(bottoms) == 5 and len(set(bottoms)) == 1
    finally:
        browser.call("Emulation.setDeviceMetricsOverride", width=1200, **{**size, "height": 1500})


@pytest.mark.slow
def test_in_a_browser_the_page_of_results_plays(browser, found_page, tmp_path):
    (tmp_path / "found.html").write_text(found_page)
    browser.open(f"file://{tmp_path}/found.html")
    play_and_check(browser, 3)
    browser.screenshot(tmp_path / "found.png")
