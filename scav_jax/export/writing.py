"""Writing a trained model as files that others can load; `export.__main__` says which they are."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from scav_jax.base.documents import read_object, unsealed, write_document
from scav_jax.base.errors import InputError
from scav_jax.base.files import check_name, folder_atomically, write_atomically
from scav_jax.base.names import last_parts
from scav_jax.export import UNKNOWN_LICENCE
from scav_jax.export.towers import PLATFORMS, serialized_kept, serialized_tower
from scav_jax.extract.backbones import weights
from scav_jax.features.clip import fingerprint_id
from scav_jax.objectives.objective import Objective, embeds_its_own_way
from scav_jax.retrieval import calibration
from scav_jax.retrieval.model import (
    EXPORT_VERSION,
    PARAMETERS_FILE,
    PREPROCESSING_FILE,
    Model,
    code_beside_backbone,
    flat_parameters,
)
from scav_jax.retrieval.results import (
    FORMAT_VERSION,
    distance_name,
    main_methods,
    method_name,
    recalls,
)
from scav_jax.retrieval.sketch import save_sketch
from scav_jax.sequences import STREAMS
from scav_jax.training.runs import CONFIG_FILE, Run, load_run, seen_by

TOWERS = "towers"
EVALUATIONS = "evaluation"
MOST_FIGURES = 2**26  # bytes of metrics.json: with figures for each class of many


def export(
    run: str | Path,
    out: str | Path,
    *,
    licence: str = UNKNOWN_LICENCE,
    onnx: Mapping[str, int] | None = None,
) -> Model:
    """Writes the directory; it appears at `out` whole or not at all.

    Args:
      run: the directory of a finished training.
      out: a path where nothing is, or an empty folder.
      licence: of the parameters, an SPDX name; whoever trained them has to say.
      onnx: the steps of each stream, for towers as ONNX too (see `graphs`).

    Returns:
      The model.

    Raises:
      InputError: no finished run, `out` is not empty, or `licence` is no name of one.
    """
    _check_free(Path(out))
    check_licence(licence)
    return write_model(load_run(Path(run)), Path(out), licence=licence, onnx=onnx)


def write_model(
    run: Run,
    out: Path,
    *,
    licence: str = UNKNOWN_LICENCE,
    onnx: Mapping[str, int] | None = None,
) -> Model:
    """The same of a run that is in memory; its `path` is where its evaluations are."""
    _check_free(out)
    check_licence(licence)
    model = Model(run)
    with folder_atomically(out) as partial:
        (partial / TOWERS).mkdir()
        _write(model, partial, model_card(model, run.path, licence))
        if onnx:
            from scav_jax.export.graphs import write_graphs

            write_graphs(model, partial, onnx)
    return model


def _check_free(out: Path) -> None:
    check_name(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: expected a new or empty folder, {out} is not; choose another")


def check_licence(licence: str) -> None:
    """Raises `InputError` for more than a name, which the head of a card could not hold."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise InputError(
            f"--licence: expected an SPDX name such as cc-by-4.0 or mit, got {licence!r}; for a "
            "licence without one write other and name it in the card"
        )


def _write(model: Model, folder: Path, readme: str) -> None:
    metadata = {"identity": model.identity}  # one entry: several come in an order of chance
    weights.write(folder / PARAMETERS_FILE, flat_parameters(model.run.params), metadata)
    write_document(folder / CONFIG_FILE, _config(model))
    prepared = {"id": fingerprint_id(model.fingerprint), "fingerprint": model.fingerprint}
    write_document(folder / PREPROCESSING_FILE, prepared)
    for stream in STREAMS:
        content = serialized_tower(model, stream)
        write_atomically(folder / TOWERS / f"{stream}.jaxexport", content)
        if embeds_its_own_way(model.run.objective):
            content = serialized_kept(model, stream)
            write_atomically(folder / TOWERS / f"{stream}_kept.jaxexport", content)
    if model.sketch is not None:
        save_sketch(folder, model.sketch, model.identity, {})
    if model.calibration is not None:
        calibration.write(folder, model.calibration)
    write_atomically(folder / "README.md", readme)


def _config(model: Model) -> dict:
    """The resolved config without what means nothing elsewhere: folders of this machine."""
    config = json.loads(json.dumps(model.run.config))
    config["data"]["path"] = _data_name(model)
    config["train"]["init_from"] = ""
    objective = model.run.objective
    config["objective"] |= {name: getattr(objective, name) for name in objective.decided}
    del config["features"]["fingerprint"]
    config["export"] = {
        "format_version": EXPORT_VERSION,
        "identity": model.identity,
        "averaged_steps": list(model.run.steps),
    }
    return config


def _data_name(model: Model) -> str:
    return last_parts(Path(model.run.config["data"].get("path", "")))


# ---- the card ---------------------------------------------------------------------------------

CARD = """\
---
library_name: scav_jax
license: {licence}
tags: [audio-visual, retrieval, contrastive-learning, jax]
---

# {title}

Two encoders that bring the picture and the sound of a clip to sequences of {width} numbers a \
step, so that videos are found by sound and sounds by video: Sequential Contrastive Audio-Visual \
Learning (SCAV, https://arxiv.org/abs/2407.05782), trained with scav_jax.

```python
{imports}from scav_jax.retrieval.model import load

model = load("DIR"{trust})          # this directory{weights}
query = {query}  # latents [clips, steps, {width}] and embeddings
```

| | |
|---|---|
| identity | `{identity}` (parameters, towers, distance, extractor) |
| parameters | {parameters:,} float32, mean of the checkpoints at {steps} |
| objective | {objective} |
| distance | {distance}; retrieval by {retrieval} |
| features | backbone `{backbone}`, extractor `{extractor}` ({widths}); see preprocessing.json |
| trained on | {data} |
| licence of the parameters | {licence_words} |

## Figures

{figures}

## Towers

`towers/*.jaxexport` hold both encoders as StableHLO for {platforms}, of any batch and number of \
steps, without parameters:

```python
from pathlib import Path

import jax.export
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

tower = jax.export.deserialize(bytearray(Path("towers/audio.jaxexport").read_bytes()))
params = unflatten_dict(load_file("model.safetensors"), sep=".")["encoders"]["audio"]
latents = tower.call(params, features, lengths)  # float32 [b, n, {audio_width}], int32 [b]
```

What lies at or beyond a length is not read, and zero in the result. {resampling}
{embedding}

## Limits

{seen} {of_files}; features of another one are refused.
"""


def model_card(model: Model, run: Path, licence: str) -> str:
    """The model card, in Markdown with the fields that model hubs read."""
    config, objective = model.run.config, model.run.objective
    parameters, (name, options) = flat_parameters(model.run.params), model.distance
    backbone = model.fingerprint["backbone"]["name"]
    widths = config["features"]["widths"]
    counts = config["features"].get("clips", {})
    clips = ", ".join(f"{count:,} clips in {split}" for split, count in sorted(counts.items()))
    read = ", ".join(model.run.encoders.in_words)
    resampling = (
        f"This model reads features in a way of its own ({read}; scav_jax.encoders.Encoders.read); "
        "the exported towers take what comes of it."
        if read
        else "Both towers take features at their own steps."
    )
    return CARD.format(
        title=f"{config['objective']['name']} encoders, {_data_name(model) or 'unnamed data'}",
        licence="other" if licence == UNKNOWN_LICENCE else licence,
        licence_words="not stated: ask who trained it" if licence == UNKNOWN_LICENCE else licence,
        width=model.run.encoders.width,
        trust=_trust_words(model),
        weights=_weights_words(model),
        identity=model.identity,
        parameters=sum(values.size for values in parameters.values()),
        steps=", ".join(f"{step:,}" for step in model.run.steps) or "no stated step",
        objective=config["objective"]["name"],
        distance=distance_name({"name": objective.distance, "options": objective.distance_options}),
        retrieval=distance_name({"name": name, "options": options}),
        backbone=backbone,
        extractor=fingerprint_id(model.fingerprint),
        widths=f"{widths['visual']} numbers a frame, {widths['audio']} every "
        f"{model.audio_step_s:g} s of sound",
        data=f"{_data_name(model) or 'unnamed data'}{', ' if clips else ''}{clips}",
        figures=_figures(run),
        platforms=", ".join(platform.upper() for platform in PLATFORMS),
        audio_width=widths["audio"],
        resampling=resampling,
        embedding=_embedding_words(objective),
        seen=_seen_words(config),
        **_files_words(model),
    )


def _seen_words(config: dict) -> str:
    _, *before = seen_by(config)
    if not before:
        return "It has seen the data above and nothing else."
    return f"It began with the weights of a model that had seen {'; '.join(before)}."


def _embedding_words(objective: Objective) -> str:
    """How a clip's latents become its vector, and what the towers take of it."""
    if not embeds_its_own_way(objective):
        return "The embedding of a clip is the mean of its latents over time."
    words = (
        "What is compared and the embedding of a clip are not its latents and their mean: "
        "`towers/*_kept.jaxexport` make both of latents, lengths and the stored features with "
        "their lengths and windows, with the parameters below `heads`."
    )
    if type(objective).shown is not Objective.shown:
        words += " The towers take a clip as the objective's `shown` gives it, not as it is stored."
    if objective.classes:
        words += (
            f" This model was trained to tell {len(objective.classes)} classes (`objective.classes`"
            " in config.json) by the linear layer `heads.linear`, not to be searched with."
        )
    return words


def _files_words(model: Model) -> dict[str, str]:
    """How clips come to the model, which cannot make features that were imported."""
    if "imported" in model.fingerprint["backbone"]:
        words = {"imports": "from scav_jax.features import store\n"}
        words["query"] = 'model.embed_split(store.read("DATA", "test"))'
        told = "Its features were extracted elsewhere and imported (`scav datasets import`)"
        return words | {"of_files": told}
    told = "Files are decoded and turned into features by the extractor of preprocessing.json"
    return {"imports": "", "query": 'model.embed("door.wav")', "of_files": told}


def _trust_words(model: Model) -> str:
    """What `load` takes besides the directory, where the model names code of a user's own."""
    about = model.fingerprint["backbone"]
    sides = [about[stream]["name"] for stream in STREAMS if stream in about]
    named = [
        *code_beside_backbone(model.run.config).values(),
        *(one for one in sides if ":" in one),
    ]
    return f", trust={list(dict.fromkeys(named))}" if named else ""


def _weights_words(model: Model) -> str:
    """What `load` takes besides the directory, for a model that is to embed files."""
    about = model.fingerprint["backbone"]
    sides = (about[stream] for stream in STREAMS if stream in about)  # imported features have none
    named = {side["name"] for side in sides if side["has_weights"]}
    return f", weights={{{', '.join(f'{name!r}: ...' for name in sorted(named))}}}" if named else ""


def _figures(run: Path) -> str:
    """Tables of the run's evaluations, if there are any."""
    tables = []
    for path in sorted((run / EVALUATIONS).glob("*/metrics.json")):
        mend = "evaluate again, or remove the folder"
        document = read_object(path, "the figures of an evaluation", mend, MOST_FIGURES)
        if document.get("format_version") == FORMAT_VERSION:
            expected = f"{path}: expected the figures of an evaluation"
            tables.append(_table(unsealed(document, expected, mend)))
        else:
            tables.append(f"`{path.parent.name}` was evaluated by another version of scav_jax.")
    if not tables:
        return "None: the run was not evaluated before it was exported."
    return "\n\n".join(tables)


def _table(document: dict) -> str:
    data, run = document["data"], document["runs"][0]
    head = f"Split `{data['split']}`, {data['n']:,} clips, SHA-256 of the ids {data['ids_sha256']}"
    rendered = " Rendered data of this project." if data.get("rendered") else ""
    lines = [
        f"{head}.{rendered}",
        "",
        "| retrieval | A->V R@1 | R@5 | R@10 | V->A R@1 | R@5 | R@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in main_methods(run):
        lines.append(f"| {method_name(method)} | {' | '.join(recalls(method))} |")
    return "\n".join(lines)
