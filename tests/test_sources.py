"""Anyone's embeddings in the table: our own run as a file gives our own row, bad ones are named."""

import json
import os
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import data, method, scav  # noqa: F401

from scav_jax.base.errors import InputError
from scav_jax.base.files import ids_sha256
from scav_jax.evaluate import __main__ as program
from scav_jax.evaluate import sources
from scav_jax.features import store

ADAPTERS = Path(__file__).parents[1] / "scripts/adapters"


def evaluated(out, *words):
    words = ["--split", "test", "--hybrid", "1,3,10", "--bootstrap", "0", "--out", out, *words]
    assert program.main([str(word) for word in words]) == 0
    return json.loads((Path(out) / "metrics.json").read_text())


def figures(row):
    keys = ("a2v", "v2a", "k", "method")
    return [{key: one[key] for key in keys} for one in row["methods"]], row["first_stage"]


@pytest.mark.usefixtures("figures_only")
def test_our_own_run_as_a_file_gives_our_own_row(scav, data, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "own.npz"
    own = evaluated(tmp_path / "run", "--run", scav, "--save", file)
    words = tmp_path / "both", "--run", scav, "--embeddings", file, "--save"

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="expected a folder at"):
        evaluated(*words, file / "own.npz")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(sources, "write", full)  # what cannot be saved loses no figure
        evaluated(*words, tmp_path / "full.npz")
    both = json.loads((tmp_path / "both" / "metrics.json").read_text())
    first, second = both["runs"]
    assert figures(first) == figures(second) == figures(own["runs"][0])
    assert first["per_class"] == second["per_class"]
    for key in ("parameters", "training", "distance", "own_method"):
        assert first[key] == second[key], key
    assert {first["objective"], second["objective"]} == {"sequence", "embeddings"}
    said = capsys.readouterr().out
    assert f"{first['parameters']:,} parameters, has seen" in said
    alone = evaluated(tmp_path / "alone", "--embeddings", file, "--data", data)
    assert figures(alone["runs"][0]) == figures(first)


def one_vector(split, **changes):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(split))
    arrays = {
        "ids": np.array(split.ids)[order],
        "visual": rng.normal(size=(len(split), 5)),
        "audio": rng.normal(size=(len(split), 5)),
        "name": np.array("theirs"),
        "parameters": np.array(12),
        "training": np.array("everything"),
    }
    return order, arrays | changes


def as_sequences(clips, **changes):
    values, lengths = np.ones((clips, 2, 5)), np.full(clips, 2)
    found = {"visual": values, "audio": values, "visual_lengths": lengths, "audio_lengths": lengths}
    whole = np.tile([0.0, 2.0], (clips, 1))
    return found | {"visual_windows": whole, "audio_windows": whole} | changes


def test_one_vector_a_clip_is_ranked_by_aggregation_in_any_order(data, scav, tmp_path):  # noqa: F811
    split = store.read(data, "test")
    _, arrays = one_vector(split)
    np.savez(tmp_path / "theirs.npz", **arrays)
    chosen = ["clip 7", "clip 2", "clip 5"]
    (tmp_path / "ids.txt").write_text("# a list\n" + "\n".join(chosen) + "\n")
    found = evaluated(tmp_path / "e", "--embeddings", tmp_path / "theirs.npz", "--data", data)
    (row,) = found["runs"]
    assert [one["method"] for one in row["methods"]] == ["aggregation"]
    visual, audio = (arrays[s] / np.linalg.norm(arrays[s], axis=1, keepdims=True)
                     for s in ("visual", "audio"))  # fmt: skip
    cosines = visual @ audio.T
    ranks = 1 + np.sum(cosines > np.diagonal(cosines)[:, None], axis=1)
    assert row["methods"][0]["v2a"]["mean_rank"] == pytest.approx(ranks.mean())
    assert (tmp_path / "e" / "report.html").stat().st_size > 10_000
    listed = evaluated(tmp_path / "l", "--run", scav, "--ids", tmp_path / "ids.txt",
                       "--hybrid", "1")  # fmt: skip
    assert listed["data"]["n"] == 3 and listed["data"]["ids_sha256"] == ids_sha256(chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("audio"), "got none called 'audio'"),
        (lambda a: a["visual"].__setitem__((3, 1), np.nan), "NaN or infinity for 'clip"),
        (lambda a: a.update(ids=np.array([*a["ids"][:-1], "other"])),
         r"10 ids of the split.*1 missing: 'clip.*1 not in the split: 'other'"),
        (lambda a: a.update(ids=np.array([a["ids"][1], *a["ids"][1:]])), "1 twice: 'clip"),
        (lambda a: a.update(audio=a["audio"][:-1]), r"audio of shape \[10, E\]"),
        (lambda a: a.update(audio=a["audio"][:, :4]), "one form and width"),
        (lambda a: a.update(audio=np.ones((10, 2, 5)), visual=np.ones((10, 2, 5))),
         "expected visual_lengths with the sequences"),
        (lambda a: a.update(name=np.array({"a": 1}, object)), "expected an npz of plain arrays"),
        (lambda a: a.update(as_sequences(10, visual_lengths=np.full(10, 3))),
         r"visual_lengths of 10 whole numbers in 1\.\.2, got int64 \[10\] from 3 to 3"),
        *((lambda a, bad=bad: a.update(as_sequences(10, visual_windows=np.tile(bad, (10, 1)))),
           "visual_windows as begin and extent, in steps, of a part of each sequence, got")
          for bad in ((-50.0, 2.0), (0.0, 0.0), (1.0, 9.0), (2.0, -1.0))),
        (lambda a: a.update(name=np.array(b"x")), "name as one string, got"),
        (lambda a: a.update(ids=a["ids"].astype("S")), "ids as a row of strings"),
        (lambda a: a.update(visual=a["visual"] * 1e300), "NaN or infinity for 'clip"),
        (lambda a: a.update(visual_embeddings=a["ids"][:, None]), "finite visual_embeddings"),
        (lambda a: a.update(visual_embeddings=np.full((10, 2), 1e99),
                            audio_embeddings=np.ones((10, 2))), "finite visual_embeddings"),
        *((lambda a, bad=bad: a.update(parameters=np.array(bad)), "parameters as one whole number")
          for bad in ("abc", np.nan, np.inf, [1, 2], -1)),
        *((lambda a, bad=bad: a.update(distance=np.array(bad)), message)
          for bad, message in (("[" * 100_000, "nested too deeply"), ("[]", "distance as JSON"),
              ('{"name": "os:getcwd", "options": {}}', "name is none of euclidean"),
              ('{"name": "euclidean", "options": {"zz": 1}}', "theirs.npz: distance .*got 'zz'"))),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named(data, tmp_path, change, message):  # noqa: F811
    split = store.read(data, "test")
    _, arrays = one_vector(split)
    change(arrays)
    np.savez(tmp_path / "theirs.npz", **arrays)
    with pytest.raises(InputError, match=message):
        sources.embedded_from(sources.load(tmp_path / "theirs.npz"), split)


def test_the_same_clips_of_other_features_come_in_the_same_order(data):  # noqa: F811
    split = store.read(data, "test")
    asked = split.take([7, 2, 5])
    other = split.take([5, 1, 7, 0, 2])  # in another order, with others between
    same = sources.same_clips(other, asked)
    assert same.ids == asked.ids and len(same) == 3
    for one, theirs in ((asked[number], same[number]) for number in range(3)):
        assert one.source == theirs.source and one.start == theirs.start
        np.testing.assert_array_equal(one.visual, theirs.visual)
    with pytest.raises(InputError, match="1 missing: 'clip 2'"):
        sources.same_clips(split.take([5, 1, 7]), asked)


def test_ids_that_are_not_there_and_words_that_do_not_go_together(data, tmp_path):  # noqa: F811
    (tmp_path / "ids.txt").write_text("clip 1\nnobody\n")
    with pytest.raises(InputError, match="1 of 2 not in the split: 'nobody'"):
        sources.chosen(store.read(data, "test"), tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("clip 1\nclip 1\n")
    with pytest.raises(InputError, match="named twice: 'clip 1'"):
        sources.chosen(store.read(data, "test"), tmp_path / "ids.txt")
    split = store.read(data, "test")
    split.ids = ["#1", " a", "c"]
    (tmp_path / "ids.txt").write_text("\ufeff#1\r\n# a remark\n b \n\n a\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 of 3 not in the split: 'b'"):
        sources.chosen(split, tmp_path / "ids.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="an id a line, got a pipe"):
        sources.chosen(split, tmp_path / "pipe")
    (tmp_path / "text.npz").write_text("no npz")
    with pytest.raises(InputError, match=r"an npz of plain arrays \(it is no npz\); write"):
        sources.load(tmp_path / "text.npz")
    for words, message in (
        ([], "--run: expected a run, or --embeddings"),
        (["--embeddings", "x.npz"], "--data: expected a data set with --embeddings"),
        (["--embeddings", "x.npz", "--data", "y", "--save", "z"], "--save: expected --run"),
    ):
        with pytest.raises(InputError, match=message):
            program.parse(["--split", "test", *words])


def test_an_adapter_writes_a_file_that_is_taken(data, tmp_path, monkeypatch):  # noqa: F811
    """ImageBind's, around a small model of its interface; nothing is decoded."""
    split = store.read(data, "test")

    class Model:
        def parameters(self):
            return [types.SimpleNamespace(numel=lambda: 7)]

        def __call__(self, inputs):
            return {k: types.SimpleNamespace(cpu=lambda v=v: types.SimpleNamespace(
                numpy=lambda: np.stack([np.full(4, len(v)), np.arange(4)])[: len(v)] + 1.0
            )) for k, v in inputs.items()}  # fmt: skip

        eval = to = lambda self, *_: self

    fake = {name: types.ModuleType(name) for name in (
        "torch", "imagebind", "imagebind.models", "imagebind.models.imagebind_model"
    )}  # fmt: skip
    fake["torch"].no_grad = lambda: lambda function: function
    fake["imagebind"].data = types.SimpleNamespace(
        load_and_transform_video_data=lambda files, device: files,
        load_and_transform_audio_data=lambda files, device: files,
    )
    module = fake["imagebind.models.imagebind_model"]
    module.imagebind_huge = lambda pretrained: Model()
    module.ModalityType = types.SimpleNamespace(VISION="vision", AUDIO="audio")
    fake["imagebind.models"].imagebind_model = module
    for name, value in fake.items():
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.syspath_prepend(str(ADAPTERS))
    out = tmp_path / "imagebind.npz"
    words = ["--data", data, "--split", "test", "--out", out, "--batch-size", 2]
    monkeypatch.setattr("sys.argv", ["imagebind.py", *map(str, words)])
    import clips

    monkeypatch.setattr(clips, "cut", lambda *_: ("a.mp4", "a.wav"))
    runpy.run_path(str(ADAPTERS / "imagebind.py"), run_name="__main__")
    file = sources.load(out)
    assert (file.name, file.parameters, file.ids) == ("ImageBind", 7, split.ids)
    assert sources.embedded_from(file, split).visual_embeddings.shape == (10, 4)
    sys.modules.pop("clips")
