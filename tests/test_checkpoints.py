"""Checkpoints: the latest and the best are kept, averaging is a mean, another model is refused."""

import contextlib
import gc
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.encoders import Encoders
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.train_step import TrainState, init_state
from scav_jax.training import checkpoints as ck
from scav_jax.training import runs
from scav_jax.training.config import Config, as_dict

WIDTHS = {"visual": 7, "audio": 6}
SIZES = {
    "width": 8,
    "heads": 2,
    "visual_blocks": 0,
    "audio_blocks": 0,
    "visual_hidden": 5,
    "audio_hidden": 9,
    "feedforward": 10,
}


@pytest.fixture(scope="module")
def state():
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    return init_state(Encoders(**SIZES), Sequential(), optimizer, runs.example_batch(WIDTHS), 0)


def shifted(state, by):
    params = jax.tree.map(lambda x: x + jnp.asarray(by, x.dtype), state.params)
    return state.replace(params=params, step=jnp.int32(by))


@pytest.fixture(scope="module")
def folder_of_saved(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def saved(folder_of_saved, state):
    """For tests that only read it."""
    manager = ck.Checkpoints(folder_of_saved, keep_best=2)
    for step, score in ((10, 0.5), (20, 0.9), (30, 0.1), (40, 0.7)):
        manager.save(step, shifted(state, step), {"next_index": step}, score)
    manager.save(55, shifted(state, 55), {"next_index": 55}, None)
    manager.wait()
    yield manager
    manager.close()


def test_the_latest_and_the_best_are_kept(saved, folder_of_saved):
    assert saved.latest_written() == 55
    assert saved.best_steps() == [20, 40]
    kept = {int(path.name) for path in (folder_of_saved / "checkpoints").iterdir()}
    assert kept == {20, 40, 55}  # the best two and the latest two


def test_restore_returns_exactly_what_was_saved(saved, state):
    restored, batches_state = saved.restore(55, state)
    assert batches_state == {"next_index": 55}
    expected = shifted(state, 55)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_average_is_the_mean_of_the_best(saved, state):
    average, steps = saved.average(state.params)
    assert steps == [20, 40]
    jax.tree.map(
        lambda mean, start: np.testing.assert_allclose(mean, np.asarray(start) + 30, rtol=1e-6),
        average,
        state.params,
    )


def test_a_checkpoint_of_another_shape_is_refused_by_name(saved, state):
    other = Encoders(**(SIZES | {"audio_hidden": 11}))
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    like = init_state(other, Sequential(), optimizer, runs.example_batch(WIDTHS), 0)
    with pytest.raises(InputError, match=r"another model.*projection_in.*\(11,\).*\(9,\)"):
        saved.restore(55, like)
    with pytest.raises(InputError, match="another model"):
        saved.average(like.params)


def test_another_optimizer_is_refused_by_name(saved, state):
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    one_more = optax.chain(optimizer, optax.trace(0.5))
    like = init_state(Encoders(**SIZES), Sequential(), one_more, runs.example_batch(WIDTHS), 0)
    with pytest.raises(InputError, match=r"another model: parameter 'opt_state/"):
        saved.restore(55, like)
    with pytest.raises(InputError, match=r"another model: parameter 'opt_state/"):
        saved.restore_latest(like)
    assert saved.latest_written() == 55  # nothing was set aside


def write_others(folder, state):
    """Puts other parameters in the place of those that were saved, whole and readable."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), shifted(state, 7).params, force=True)


def test_a_broken_checkpoint_is_left_out_of_the_average(
    saved, folder_of_saved, state, tmp_path, capsys
):
    shutil.copytree(folder_of_saved, tmp_path / "run")
    write_others(tmp_path / "run" / "checkpoints" / "40" / "params", state)
    with contextlib.closing(ck.Checkpoints(tmp_path / "run", keep_best=2)) as manager:
        averaged, steps = manager.average(state.params)
    assert steps == [20] and equal(averaged, shifted(state, 20).params)
    said = capsys.readouterr().err
    assert "checkpoint of step 40 is broken" in said and "left out of the average" in said


# ---- broken checkpoints ----------------------------------------------------------------------


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    file.write_bytes(content)


def equal(ours, theirs):
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.fixture(scope="module")
def few():
    """A state of a few arrays: its checkpoint has the same files, and is read many times."""
    random = np.random.default_rng(0)
    matrix, bias = random.normal(size=(24, 17)), random.normal(size=17)
    params = {"layer": {"kernel": matrix, "bias": bias}, "log_temperature": {"sequence": 0.3}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(params), {}, skipped, in_row)


@pytest.fixture(scope="module")
def two_saved_once(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("two") / "kept"
    with contextlib.closing(ck.Checkpoints(folder, keep_best=1)) as manager:
        manager.save(10, shifted(few, 10), {"next_index": 10}, 0.5)
        manager.save(20, shifted(few, 20), {"next_index": 20}, 0.7)
    return folder


@pytest.fixture
def two_saved(two_saved_once, tmp_path):
    return Path(shutil.copytree(two_saved_once, tmp_path / "kept"))


# Orbax leaves coroutines behind when a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("damage", [truncate, flip, os.remove])
def test_every_damaged_file_is_seen_and_the_run_goes_back_one(two_saved, few, damage, capsys):
    """Each file in turn: what is read is what was written, or the one before, with a word."""
    latest = two_saved / "checkpoints" / "20"
    files = sorted(p.relative_to(latest) for p in latest.rglob("*") if p.is_file())
    went_back = set()
    for number, name in enumerate(files):
        run = two_saved.parent / str(number)
        shutil.copytree(two_saved, run)
        damage(run / "checkpoints" / "20" / name)
        with contextlib.closing(ck.Checkpoints(run, keep_best=1)) as manager:
            step, restored, batches = manager.restore_latest(few)
            said = capsys.readouterr().err
            assert equal(restored, shifted(few, step)) and batches == {"next_index": step}, name
            if step == 20:
                assert said == "" and not (run / ck.BROKEN).exists(), name
                continue
            assert step == 10, name
            assert "checkpoint of step 20 is broken" in said and said.count("\n") == 1, name
            assert (run / ck.BROKEN / "20").is_dir() and manager.latest_written() == 10
            if not went_back:  # nothing is in the way
                manager.save(20, shifted(few, 21), {"next_index": 20}, 0.9)
                manager.wait()
                assert equal(manager.restore(20, few)[0], shifted(few, 21)), name
            went_back.add(str(name))
        shutil.rmtree(run)
    gc.collect()  # while their warnings are ignored
    assert any(name.startswith("params/") for name in went_back)
    assert any(name.startswith("rest/") for name in went_back)
    assert {"batches/metadata", "checks/metadata", "metrics/metrics"} & went_back


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_when_all_are_broken_nothing_starts_from_zero(two_saved, few):
    for step in ("10", "20"):
        shutil.rmtree(two_saved / "checkpoints" / step / "params")
    for _ in range(2):  # and not at the second attempt either
        manager = ck.Checkpoints(two_saved, keep_best=1)
        with pytest.raises(InputError, match=r"none of the checkpoints \(steps 10, 20\)"):
            manager.restore_latest(few)
        manager.close()
    for step in ("10", "20"):
        truncate(two_saved / "checkpoints" / step / "metrics" / "metrics")
    for _ in range(2):
        with pytest.raises(InputError, match="none of the checkpoints can be read"):
            ck.Checkpoints(two_saved, keep_best=1)
    del manager
    gc.collect()


@pytest.mark.parametrize("error", [TypeError, AttributeError, MemoryError, PermissionError])
def test_a_fault_that_is_not_the_checkpoints_sets_none_aside(two_saved, few, error, monkeypatch):
    """Else another version of a package would set aside every checkpoint of a long run."""

    def restore(*_):
        raise error("restore() got an unexpected keyword argument")

    with contextlib.closing(ck.Checkpoints(two_saved, keep_best=1)) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(ck.Checkpoints, "restore", restore)
            patch.setattr(ck, "_params", restore)
            with pytest.raises(error):
                manager.restore_latest(few)
            with pytest.raises(error):
                manager.average(few.params)
        assert not (two_saved / ck.BROKEN).exists()
        assert manager.restore_latest(few)[0] == 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    "sealed", ["rest/manifest.ocdbt", "params/manifest.ocdbt", "metrics/metrics"]
)
def test_a_checkpoint_that_may_not_be_read_is_not_set_aside(two_saved, few, sealed, seal):
    seal(two_saved / "checkpoints" / "20" / sealed)
    with (
        pytest.raises(PermissionError, match="checkpoints"),
        contextlib.closing(ck.Checkpoints(two_saved, keep_best=1)) as manager,
    ):
        manager.restore_latest(few)
    assert not (two_saved / ck.BROKEN).exists()
    if sealed.startswith("params"):
        with pytest.raises(PermissionError, match="checkpoints"):
            ck.latest_params(two_saved, few.params)
    gc.collect()


def test_nothing_saved_is_not_an_error(tmp_path, state):
    with contextlib.closing(ck.Checkpoints(tmp_path, keep_best=1)) as manager:
        assert manager.restore_latest(state) is None and manager.latest_written() is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int8"])
def test_a_checksum_is_what_the_formula_says_and_sees_every_flip(random, dtype):
    array = random.integers(-90, 90, size=(3, 5)).astype(dtype)
    words = array.view(f"uint{8 * array.itemsize}").ravel().tolist()
    expected = sum(w * ((i * 2654435761) % 2**32 | 1) for i, w in enumerate(words)) % 2**32
    assert int(ck._checksum(jnp.asarray(array))) == expected
    odd = array % 2 == 1
    assert ck._checksum(jnp.asarray(odd)) == ck._checksum(jnp.asarray(odd.astype(np.uint8)))
    raw = array.tobytes()
    for bit in range(0, 8 * len(raw), 7):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(bytes(flipped), dtype).reshape(array.shape)
        assert int(ck._checksum(jnp.asarray(other))) != expected, bit


def test_an_unfinished_or_missing_run_says_so(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        runs.load_run(tmp_path)
    write_document(tmp_path / "config.json", {})
    with pytest.raises(InputError, match="not finished"):
        runs.load_run(tmp_path)


@pytest.fixture
def averaged_run(tmp_path, state):
    features = {"fingerprint": {"backbone": "x"}, "widths": WIDTHS}
    config = as_dict(Config().replace(encoders=SIZES)) | {"features": features}
    write_document(tmp_path / "config.json", config)
    runs.save_averaged(tmp_path, state.params, [20, 40])
    return tmp_path


def test_averaged_parameters_load_without_the_training_state(averaged_run, state):
    run = runs.load_run(averaged_run)
    jax.tree.map(np.testing.assert_array_equal, run.params, state.params)
    assert run.steps == (20, 40) and run.encoders == Encoders(**SIZES)
    assert run.objective.distance_options == {"resample": "visual_to_audio"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_damaged_averaged_parameters_are_one_line(averaged_run, tmp_path_factory, state, caplog):
    """Each file in turn: what is read is what was written, or one line says what to do."""
    seen = set()
    files = sorted(p.relative_to(averaged_run) for p in averaged_run.rglob("*") if p.is_file())
    for name in files:
        for damage in (truncate, flip, os.remove):
            run = tmp_path_factory.mktemp("run") / "copy"
            shutil.copytree(averaged_run, run)
            damage(run / name)
            if name.name == runs.CONFIG_FILE:
                continue
            try:
                assert equal(runs.load_run(run).params, state.params), name
            except InputError as error:
                assert "not what was written" in str(error) and "delete this folder" in str(error)
                assert "\n" not in str(error)
                seen.add((damage, str(name)))
    gc.collect()  # while their warnings are ignored
    assert "absl" not in {record.name for record in caplog.records}
    assert {
        (damage, f"{runs.AVERAGED}/steps.json") for damage in (truncate, flip, os.remove)
    } <= seen
    assert {damage for damage, name in seen if "params" in name} == {truncate, flip, os.remove}
    write_others(averaged_run / runs.AVERAGED / "params", state)
    with pytest.raises(InputError, match="has another checksum"):
        runs.load_run(averaged_run)
