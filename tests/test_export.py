"""An exported model: the same numbers, the same bytes, without orbax and without this machine."""

import hashlib
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import jax
import jax.export
import numpy as np
import pytest
import safetensors
from conftest import unchecked
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file
from test_evaluate import write_data
from test_model import film, write_run

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.evaluate.__main__ import main as evaluate
from scav_jax.export import __main__ as program
from scav_jax.export import graphs
from scav_jax.export import writing as export
from scav_jax.export.towers import width_read
from scav_jax.extract.manifest import DEFAULT_SPLIT
from scav_jax.extract.program import extract
from scav_jax.retrieval import calibration, model
from scav_jax.retrieval.results import FORMAT_VERSION
from scav_jax.retrieval.sketch import Sketch, save_sketch
from scav_jax.retrieval.synchrony import Calibration
from scav_jax.sequences import AudioVisual, Sequences
from scav_jax.training import runs, start

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessing.json",
    "sketch/maps.npz",
    "sketch/sketch.json",
    "synchrony.json",
    "towers/audio.jaxexport",
    "towers/visual.jaxexport",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", pre_resample=None)
    summary = {"recall_at_1": 0.123, "recall_at_5": 0.4567, "recall_at_10": 0.5}
    both = {"a2v": summary, "v2a": summary}
    document = {
        "data": {"split": "test", "n": 1020, "ids_sha256": "c0ffee", "rendered": True},
        "runs": [
            {
                "methods": [
                    {"method": "aggregation", "k": 1, **both},
                    {"method": "hybrid", "k": 100, **both},
                    {"method": "sequence", "k": 1020, **both},
                ]
            }
        ],
    }
    document["format_version"] = FORMAT_VERSION
    (folder / "evaluation" / "x-test").mkdir(parents=True)
    write_document(folder / "evaluation" / "x-test" / "metrics.json", document)
    (folder / "evaluation" / "y-test").mkdir()
    (folder / "evaluation" / "y-test" / "metrics.json").write_text('{"format_version": 0}')
    identity, width = model.load(folder).identity, 12
    maps = np.zeros(width, np.float32), np.eye(width, dtype=np.float32), np.arange(4).reshape(2, 2)
    save_sketch(folder, Sketch(8, *maps, np.ones(1, np.float32)), identity, {})
    of, nulls = ("", "data/x", "validation"), ((2.0, 1.0), (0.5, 0.1), (-1.0, 0.25, 1.0))
    calibration.write(folder, Calibration(identity, *of, 200, 2.0, 0.03, 10.0, *nulls))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    assert program.main(["--run", str(run), "--out", str(out), "--licence", "cc-by-4.0"]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def symbolic_shapes():
    with unchecked():
        yield


def files_of(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_the_same_run_gives_the_same_bytes(run, exported, tmp_path):
    (tmp_path / "again").mkdir()
    export.export(run, tmp_path / "again", licence="cc-by-4.0")
    assert files_of(tmp_path / "again") == files_of(exported)
    assert set(files_of(exported)) == FILES
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


def test_it_says_nothing_of_the_machine(run, exported):
    for name, content in files_of(exported).items():
        for word in (str(run), str(ROOT), "/data/mine", "/tmp/", "site-packages", ".py"):
            assert word.encode() not in content, (name, word)


LOAD = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("orbax", "tensorstore"):
            raise ModuleNotFoundError(f"No module named {name!r} (absent on purpose)", name=name)

sys.meta_path.insert(0, Absent())
from scav_jax.retrieval.model import load
model = load(sys.argv[1])
query = model.embed(sys.argv[2])
print(model.identity, query.audio_embeddings.tobytes().hex(), query.visual.values.sum())
"""


def test_it_gives_the_same_latents(run, exported, tmp_path):
    path = film(tmp_path / "a.mp4", 2, seed=1)
    original, copy = model.load(run), model.load(exported)
    assert copy.identity == original.identity
    assert (copy.distance, copy.fingerprint) == (original.distance, original.fingerprint)
    assert copy.run.steps == (10, 20)
    assert copy.calibration == original.calibration and copy.calibration.bias_s == 0.03
    assert copy.sketch.name == original.sketch.name
    jax.tree.map(np.testing.assert_array_equal, copy.run.params, original.run.params)
    one, other = original.embed(path), copy.embed(path)
    np.testing.assert_array_equal(one.visual.values, other.visual.values)


@pytest.mark.slow
def test_it_loads_without_orbax(run, exported, tmp_path):
    path = film(tmp_path / "a.mp4", 2, seed=1)
    original = model.load(run)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(exported), str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    identity, embedding, _ = done.stdout.split()
    assert identity == original.identity
    there = np.frombuffer(bytes.fromhex(embedding), np.float32)
    expected = original.embed(path).audio_embeddings[0]
    np.testing.assert_allclose(there, expected, atol=1e-5)


@pytest.mark.parametrize("stream", ["visual", "audio"])
def test_towers_run_without_our_code_on_any_size(exported, stream):
    """Against the whole encoders with the other stream beside them; NaN in the padding."""
    content = bytearray((exported / "towers" / f"{stream}.jaxexport").read_bytes())
    tower = jax.export.deserialize(content)
    assert tower.platforms == ("cpu", "cuda", "tpu")
    stored = load_file(exported / "model.safetensors")
    params = unflatten_dict(stored, sep=".")["encoders"]
    encoders = model.load(exported).run.encoders
    random = np.random.default_rng(0)
    for batch, steps in ((1, 1), (3, 7), (1, 1003)):  # beyond the table's largest distance, 800
        lengths = {"visual": np.full(batch, steps), "audio": np.full(batch, steps)}
        lengths[stream] = random.integers((steps + 1) // 2, steps + 1, batch)
        features = {
            name: Sequences(
                values=random.normal(size=(batch, steps, width)).astype(np.float32),
                lengths=lengths[name].astype(np.int32),
                windows=np.zeros((batch, 2), np.float32),
            )
            for name, width in (("visual", 384), ("audio", 2048))
        }
        asked = features[stream]
        for row, length in enumerate(asked.lengths):
            asked.values[row, length:] = np.nan
        expected = jax.jit(encoders.apply)({"params": params}, AudioVisual(**features))
        got = tower.call(params[stream], asked.values, asked.lengths)
        np.testing.assert_allclose(got, getattr(expected, stream).values, atol=1e-5)
        assert np.isfinite(got).all() and np.abs(got).max() > 0.5


def test_the_card_says_what_it_is(exported, run):
    card = (exported / "README.md").read_text()
    identity = model.load(run).identity
    for words in (
        "license: cc-by-4.0",
        "library_name: scav_jax",
        f"`{identity}`",
        "10, 20",
        "data/mine, 1,200 clips in train",
        "euclidean (resample=visual_to_audio)",
        "backbone `plain`",
        "| sequence | 12.3 | 45.7 | 50.0 | 12.3 | 45.7 | 50.0 |",
        "| hybrid, k = 100 | 12.3",
        "1,020 clips, SHA-256 of the ids c0ffee. Rendered data of this project.",
        "Both towers take features at their own steps.",
    ):
        assert words in card, words
    assert not re.search(r"[{}]", re.sub(r"```.*?```", "", card, flags=re.DOTALL))
    with safetensors.safe_open(exported / "model.safetensors", "np") as opened:
        assert opened.metadata() == {"identity": identity}


def test_the_code_of_the_card_runs(exported, monkeypatch):
    """With the exported folder as working directory, as its text says."""
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    features, lengths = np.ones((2, 5, 2048), np.float32), np.array([5, 3], np.int32)
    names = {"features": features, "lengths": lengths}
    exec(compile(blocks[1], "README.md", "exec"), names)
    assert names["latents"].shape == (2, 5, 12)


def test_a_card_without_licence_or_figures_says_so(tmp_path):
    run = write_run(tmp_path / "run")
    made = model.load(run)
    card = export.model_card(made, run, export.UNKNOWN_LICENCE)
    assert "license: other" in card
    assert "not stated: ask who trained it" in card
    assert "None: the run was not evaluated" in card
    assert "features resampled visual_to_audio; scav_jax" in card
    finely = made.run.encoders.clone(pre_points=2, visual_rise=3.0)
    made.run = replace(made.run, encoders=finely)
    card = export.model_card(made, run, export.UNKNOWN_LICENCE)
    assert "visual_to_audio, 2 points a step: beside, visual rises times 3" in card
    assert [width_read(made, stream) for stream in ("visual", "audio")] == [4 * 384, 2048]


@pytest.mark.parametrize("licence", ["two words", "mit\nmodel: x", "", "a: b"])
def test_a_licence_is_a_name(licence, tmp_path):
    with pytest.raises(InputError, match="--licence: expected an SPDX name"):
        export.export(tmp_path / "no run", tmp_path / "out", licence=licence)


def test_damage_is_seen(exported, tmp_path):
    def copy(name):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files_of(exported).items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content)
        return folder

    flipped = copy("flipped")
    content = bytearray((flipped / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (flipped / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="a file was damaged or edited"):
        model.load(flipped)

    edited = copy("edited")
    text = (edited / "preprocessing.json").read_text()
    text = text.replace('"audio_step_s": 0.16', '"a": 0.16')
    (edited / "preprocessing.json").write_text(text)
    with pytest.raises(InputError, match="its checksum says that it was damaged or edited"):
        model.load(edited)
    write_document(edited / "preprocessing.json", json.loads(text))
    with pytest.raises(InputError, match="a file was damaged or edited"):
        model.load(edited)

    cut = copy("cut")
    (cut / "model.safetensors").write_bytes(bytes(content[:1000]))
    with pytest.raises(InputError, match="expected a safetensors file"):
        model.load(cut)

    other = copy("other")
    stored = load_file(other / "model.safetensors")
    stored["encoders.audio.final_norm.scale"] = np.ones(5, np.float32)
    save_file(stored, other / "model.safetensors")
    with pytest.raises(InputError, match=r"'encoders/audio/final_norm/scale' should have shape"):
        model.load(other)

    old = copy("old")
    config = json.loads((old / "config.json").read_text())
    config["export"]["format_version"] = 0
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="format version 5, got 0"):
        model.load(old)

    (missing := copy("missing") / "preprocessing.json").unlink()
    with pytest.raises(InputError, match="expected an exported model"):
        model.load(missing.parent)


def test_what_is_there_is_not_overwritten(run, exported, tmp_path):
    before = files_of(exported)
    with pytest.raises(InputError, match="expected a new or empty folder"):
        export.export(run, exported)
    assert files_of(exported) == before
    with pytest.raises(InputError, match="expected a run directory"):
        export.export(write_data(tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("figures_only")
def test_an_export_is_evaluated_as_its_run_is(run, exported, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    for seed in range(3):
        film(tmp_path / "videos" / f"{seed}.mp4", 2.0, seed=seed)
    extract(tmp_path / "videos", tmp_path / "data", workers=1)
    words = ["--run", exported, "--data", tmp_path / "data", "--split", DEFAULT_SPLIT]
    words += ["--compare", run, "--bootstrap", "0", "--hybrid", "1"]
    assert evaluate([str(word) for word in words]) == 0
    (file,) = exported.parent.glob("model.evaluation/*/metrics.json")  # it stays as it is
    first, second = json.loads(file.read_text())["runs"]
    keys = ("method", "k", "a2v", "v2a")
    rows = [[{key: one[key] for key in keys} for one in row["methods"]] for row in (first, second)]
    assert rows[0] == rows[1] and len(rows[0]) > 1
    monkeypatch.chdir(exported)
    file.unlink()
    assert evaluate(["--run", ".", *(str(word) for word in words[2:])]) == 0 and file.exists()


# ---- the hub, for which a small server stands in -------------------------------------------------

COMMIT, NAME = "c0ffee" * 6 + "c0ff", "somebody/chimes"


class Hub(http.server.BaseHTTPRequestHandler):
    """Its few addresses that are asked; `files` by name, `asked` are the paths."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        self.asked.append(self.path)
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if self.files and self.path.startswith(f"/api/models/{NAME}/revision/"):
            content = json.dumps({"id": NAME, "sha": COMMIT}).encode()
        elif self.path.startswith(f"/api/models/{NAME}/tree/{COMMIT}"):
            rows = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(content)}
                    for name, content in self.files.items()]  # fmt: skip
            content = json.dumps(rows).encode()
        elif name in self.files:
            content = self.files[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("localhost", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    constants = importlib.import_module("huggingface_hub.constants")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Hub.files, Hub.asked = {}, []
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_the_same_and_no_code_comes_with_it(hub, exported):
    files = [path for path in exported.rglob("*") if path.is_file()]
    hub.files = {path.relative_to(exported).as_posix(): path.read_bytes() for path in files}
    hub.files["modeling.py"] = b"raise SystemExit"
    there, here = model.load(f"{NAME}@main"), model.load(exported)
    assert there.identity == here.identity
    same = jax.tree.map(np.array_equal, there.run.params, here.run.params)
    assert all(jax.tree.leaves(same))
    assert there.sketch.name == here.sketch.name and there.calibration == here.calibration
    loaded = {path.partition(f"{COMMIT}/")[2] for path in hub.asked if "/resolve/" in path}
    assert loaded == {name for name in FILES if name != "README.md" and "towers" not in name}
    before = len([path for path in hub.asked if "/resolve/" in path])
    assert model.load(NAME).identity == here.identity  # kept: nothing is downloaded twice
    assert len([path for path in hub.asked if "/resolve/" in path]) == before


def test_a_mistyped_run_beside_others_asks_no_hub(hub, tmp_path, monkeypatch):
    (tmp_path / NAME.partition("/")[0]).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{NAME}: expected a run directory"):
        model.load(NAME)
    assert not hub.asked
    with pytest.raises(InputError, match="could not be downloaded"):
        model.load(f"{NAME}@main")


def test_what_was_damaged_on_the_way_and_what_is_not_there_are_one_line(hub, exported):
    with pytest.raises(InputError, match=r"model: .*'somebody/chimes', which could not be down"):
        model.load(NAME)  # the server knows no such file
    files = [path for path in exported.rglob("*") if path.is_file()]
    hub.files = {path.relative_to(exported).as_posix(): path.read_bytes() for path in files}
    damaged = bytearray(hub.files["model.safetensors"])
    damaged[-3] ^= 1
    hub.files["model.safetensors"] = bytes(damaged)
    with pytest.raises(InputError, match=r"identity|damaged|whole"):
        model.load(NAME)


class Api:
    """What `push` asks of `HfApi`."""

    def __init__(self):
        Api.calls = []

    def create_repo(self, hub_id, **more):
        Api.calls.append((hub_id, more))

    def upload_folder(self, repo_id, folder_path, commit_message):
        Api.calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
        return type("Commit", (), {"commit_url": "its address"})


def test_an_export_is_no_run_and_that_is_said(exported, tmp_path):
    with pytest.raises(InputError, match="expected a run, this is an export"):
        program.main(["--run", str(exported), "--out", str(tmp_path / "again")])
    with pytest.raises(InputError, match=r"train.init_from: .*: expected a run, this is an export"):
        start._config_of(str(exported))
    with pytest.raises(InputError, match="holds an export of a run; use another --workdir"):
        runs.open_workdir(exported, {})


def test_an_export_is_pushed_whole_or_a_line_says_why_not(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    words = ["--out", str(exported), "--push", NAME]
    assert program.main([*words, "--private"]) == 0
    (created, options), (uploaded, names) = Api.calls
    assert created == uploaded == NAME and options == {"private": True, "exist_ok": True}
    assert {"README.md", "config.json", "model.safetensors", "preprocessing.json"} <= set(names)
    assert "uploaded: its address" in capsys.readouterr().out

    def refuse(self, *_, **__):
        raise ValueError("401: you are nobody\nand more")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(
        InputError, match=r"did not take the model \(401: you are nobody\); .*hf auth"
    ):
        program.main(words)
    with pytest.raises(InputError, match="expected OWNER/NAME, got 'chimes'"):
        program.main(["--out", str(exported), "--push", "chimes"])
    (tmp_path / "card").mkdir()  # as beside a run, which is no export
    (tmp_path / "card" / "README.md").touch()
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty", "card"):
        with pytest.raises(InputError, match=f"{name}: expected what `scav export` wrote"):
            program.main(["--out", str(tmp_path / name), "--push", NAME])
    with pytest.raises(InputError, match="--run: expected"):
        program.main(["--out", str(exported)])


# ---- ONNX --------------------------------------------------------------------------------------


def test_onnx_gives_the_numbers_of_the_towers(run, tmp_path):
    traced = jax.make_jaxpr(graphs._function(model.load(run), "audio"))
    written = str(traced(np.ones((2, 5, 2048), np.float32), np.array([5, 3], np.int32)))
    assert "dot_general" in written and "scan" not in written  # which jax2onnx does not take
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    from scav_jax.export.towers import tower_function

    out = tmp_path / "model"
    assert program.main(["--run", str(run), "--out", str(out), "--onnx", "12,5"]) == 0
    made = model.load(out)
    random = np.random.default_rng(3)
    for stream, steps in (("visual", 12), ("audio", 5)):
        session = onnxruntime.InferenceSession(str(out / "onnx" / f"{stream}.onnx"))
        width = made.run.config["features"]["widths"][stream]
        for batch in (1, 4):  # any batch
            features = random.normal(size=(batch, steps, width)).astype(np.float32)
            lengths = random.integers(1, steps + 1, batch).astype(np.int32)
            found = session.run(
                ["latents", "embedding"], {"features": features, "lengths": lengths}
            )
            tower = tower_function(made.run.encoders, stream)
            latents = np.asarray(tower(made.run.params["encoders"][stream], features, lengths))
            means = [
                row[:length].mean(axis=0) for row, length in zip(latents, lengths, strict=True)
            ]
            np.testing.assert_allclose(found[0], latents, atol=1e-5)
            np.testing.assert_allclose(found[1], means, atol=1e-5)


def test_onnx_that_cannot_be_written_is_one_line(run, tmp_path, monkeypatch):
    for words in ("12", "12,0", "a,b"):
        with pytest.raises(InputError, match="expected the visual and the audio steps"):
            program.main(["--run", str(run), "--out", str(tmp_path / "a"), "--onnx", words])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed: .*\[onnx\]"):
        program.main(["--run", str(run), "--out", str(tmp_path / "a"), "--onnx", "12,5"])
    assert not (tmp_path / "a").exists()
