"""Checkpoints: the latest and the best are kept, averaging is a mean, another model is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax import checkpoints as ck
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.files import write_json
from scav_jax.optimizer import make_optimizer
from scav_jax.train_step import Objective, init_state

WIDTHS = {"visual": 7, "audio": 6}
SIZES = {
    "width": 8,
    "heads": 2,
    "visual_blocks": 1,
    "audio_blocks": 1,
    "visual_hidden": 5,
    "audio_hidden": 9,
    "feedforward": 10,
}


@pytest.fixture(scope="module")
def state():
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    return init_state(Encoders(**SIZES), Objective(), optimizer, ck.example_batch(WIDTHS), 0)


def shifted(state, by):
    params = jax.tree.map(lambda x: x + jnp.asarray(by, x.dtype), state.params)
    return state.replace(params=params, step=jnp.int32(by))


@pytest.fixture
def saved(tmp_path, state):
    manager = ck.Checkpoints(tmp_path, keep_best=2)
    for step, score in ((10, 0.5), (20, 0.9), (30, 0.1), (40, 0.7)):
        manager.save(step, shifted(state, step), {"next_index": step}, score)
    manager.save(55, shifted(state, 55), {"next_index": 55}, None)
    manager.wait()
    yield manager
    manager.close()


def test_the_latest_and_the_best_are_kept(saved, tmp_path):
    assert saved.latest_step() == 55
    assert saved.best_steps() == [20, 40]
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
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
    other = Encoders(**(SIZES | {"feedforward": 11}))
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    like = init_state(other, Objective(), optimizer, ck.example_batch(WIDTHS), 0)
    with pytest.raises(InputError, match=r"another model.*feedforward_in.*\(11,\).*\(10,\)"):
        saved.restore(55, like)
    with pytest.raises(InputError, match="another model"):
        saved.average(like.params)


def test_an_unfinished_or_missing_run_says_so(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        ck.load_run(tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(InputError, match="not finished"):
        ck.load_run(tmp_path)


def test_averaged_parameters_load_without_the_training_state(tmp_path, state):
    config = {
        "encoders": SIZES,
        "objective": {"name": "sequence"},
        "distance": {"name": "euclidean", "resample": "visual_to_audio"},
        "features": {"fingerprint": {"backbone": "x"}, "widths": WIDTHS},
    }
    write_json(tmp_path / "config.json", config)
    ck.save_averaged(tmp_path, state.params, [20, 40])
    run = ck.load_run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, run.params, state.params)
    assert run.steps == (20, 40) and run.encoders == Encoders(**SIZES)
    assert run.objective.distance_options == {"resample": "visual_to_audio"}
