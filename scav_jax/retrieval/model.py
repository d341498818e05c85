"""A trained model in three lines: load it, embed a file, search an index.

    model = load("runs/demo")                       # or a directory that scav_jax.export wrote
    query = model.embed("door.wav")
    hits = index.search(query, "a2v", k=10)         # of scav_jax.index

What becomes of a file, and of a query that has one stream only: see `embed_files`.
"""

import argparse
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from scav_jax.base import doors
from scav_jax.base.documents import read_document, read_object, unsealed
from scav_jax.base.errors import InputError
from scav_jax.extract import backbones, jobs
from scav_jax.extract.backbones import KINDS, Backbone, make_fingerprint
from scav_jax.extract.backbones import weights as weights_files
from scav_jax.extract.jobs import Outcome
from scav_jax.extract.manifest import ClipRequest
from scav_jax.features.clip import (
    FORMAT_VERSION,
    STREAMS,
    fingerprint_difference,
    fingerprint_id,
    original,
)
from scav_jax.features.store import Split
from scav_jax.objectives.objective import embeds_its_own_way
from scav_jax.retrieval import calibration, files
from scav_jax.retrieval.calibration import Calibration
from scav_jax.retrieval.embed import Embedded, embed, join
from scav_jax.retrieval.files import TIMEOUT_S, check_times, nothing_usable, requests_for
from scav_jax.retrieval.shifts import Track
from scav_jax.retrieval.sketch import FOLDER as SKETCH_FOLDER
from scav_jax.retrieval.sketch import Sketch, load_sketch, sketched
from scav_jax.retrieval.synchrony import Synchrony, synchrony
from scav_jax.retrieval.tracks import tracks_of
from scav_jax.training.checkpoints import check_same_shapes
from scav_jax.training.config import from_dict
from scav_jax.training.runs import CONFIG_FILE, Run, build, load_run, parameter_shapes

PARAMETERS_FILE = "model.safetensors"
PREPROCESSING_FILE = "preprocessing.json"
EXPORTED = [  # what is read of an export, the last two where it has them
    *(PARAMETERS_FILE, PREPROCESSING_FILE, CONFIG_FILE),
    *(f"{SKETCH_FOLDER}/*", calibration.FILE),
]
EXPORT_VERSION = 5
MEND = "bring it back from a copy, or export the run again"
BATCH_SIZES = {"cpu": 1}  # on a CPU, more at once is not faster
BATCH_SIZE = 16


class Model:
    """A trained model that takes files.

    Attributes:
      run: the towers, parameters and config (see `checkpoints.Run`).
      fingerprint: of the extractor that its features come from.
      distance: (name, options) that the objective ranks by.
      batch_size: how many clips are encoded at once; part of what makes latents equal to the bit.
    """

    def __init__(
        self,
        run: Run,
        weights: Mapping[str, str | Path] | None = None,
        trust: Collection[str] = (),
    ):
        self.run = run
        self.fingerprint = original(run.fingerprint)
        self.distance = run.objective.ranks_by()
        self.batch_size = BATCH_SIZES.get(jax.default_backend(), BATCH_SIZE)
        self._weights, self._trust = weights, trust

    def __repr__(self) -> str:
        return f"Model({str(self.run.path)!r}, identity={self.identity!r})"

    @functools.cached_property
    def identity(self) -> str:
        """16 hexadecimal digits: models with the same digits give the same latents and ranks.

        Of the parameters, of what the config says of towers, alignment and distance, of the
        extractor, and of an objective that embeds in a way of its own; where a run lies and how it
        was trained are no part of it.
        """
        config = self.run.config
        told = {
            "encoders": config["encoders"],
            "distance": config["distance"],
            "align": config["data"]["align"],
            "features": fingerprint_id(self.fingerprint),
        }
        objective = self.run.objective
        if embeds_its_own_way(objective):
            options = config["objective"].items()
            told["objective"] = {k: v for k, v in options if k not in objective.decided}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for name, values in sorted(flat_parameters(self.run.params).items()):
            digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def sketch(self) -> Sketch | None:
        """The first stage that `scav sketch` has made for it; None where there is none."""
        path = self.run.path
        return None if path is None else load_sketch(path, lambda: self.identity)

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The frozen models that make features, loaded when they are first needed."""
        version = self.fingerprint.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"{self.run.path}: expected a model of features of format version "
                f"{FORMAT_VERSION}, got {version}; extract and train again with this version"
            )
        try:
            backbone = backbones.from_fingerprint(
                self.fingerprint["backbone"], self._weights, self._trust
            )
        except InputError as error:
            raise InputError(f"{self.run.path}: {error}") from None
        _check_backbone(backbone, self.fingerprint)
        return backbone

    @property
    def audio_step_s(self) -> float:
        """Seconds a step of sound."""
        return self.fingerprint["audio_step_s"]

    # ---- embedding ------------------------------------------------------------------------------

    def embed(self, paths: str | Path | Iterable[str | Path], **options) -> Embedded:
        """Latents and embeddings of a file, of several, or of all videos in a folder.

        Takes what `stream` takes; everything is in memory at once.

        Raises:
          InputError: nothing could be used (the message says why), or see `stream`.
        """
        parts = list(self.stream(paths, **options))
        rejected = [row for part in parts for row in part.rejected]
        usable = [part for part in parts if len(part)]
        if not usable:
            raise InputError(nothing_usable(rejected))
        return replace(join(usable), rejected=rejected)

    def stream(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        clip_seconds: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        streams: Sequence[str] | None = None,
        root: str | Path | None = None,
        workers: int | None = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> Iterator[Embedded]:
        """The same, some clips at a time, for folders that are too large to hold.

        Args:
          paths: a file, several files, or one folder: its clips.csv, or every video below it.
          clip_seconds: cuts files into windows of this length, one after the other; as in
            extraction the rest is dropped, and a shorter file is one clip. None: a file is a clip.
          start, end: the part of each file that is used, in seconds; None: to its end.
          streams: "visual", "audio", or both. None: those that the files have, both if they
            differ, and both for a folder. Files that lack one are rejected.
          root: what ids are relative to, a folder above what is given; None takes the folder that
            is given, or the path of a single file as it is.
          workers: processes that decode. 0 decodes here; with one or more, a file that hangs or
            crashes the decoder is rejected too. None: one for each core, or none for a few files.
          timeout_s: the limit for one clip, with workers.

        Yields:
          Embedded clips in the order of the files, at most 64 together, with the
          rejected ones that came before them; the first and the last may have those only.

        Raises:
          InputError: no such file, times or streams that make no sense, features or weights of
            another extractor.
        """
        check_times(start, end, clip_seconds)
        wanted = requests_for(paths, clip_seconds, start, end, streams, root)
        yield from self.embed_requests(
            wanted.requests,
            wanted.folder,
            streams=wanted.streams,
            workers=workers,
            timeout_s=timeout_s,
            rejected=wanted.rejected,
        )

    def embed_requests(
        self,
        requests: Sequence[ClipRequest],
        folder: Path,
        *,
        streams: Sequence[str] = STREAMS,
        workers: int | None = 0,
        timeout_s: float = TIMEOUT_S,
        rejected: Sequence[dict] = (),
    ) -> Iterator[Embedded]:
        """The same for a list of clips, as `extract.manifest` makes it; see `stream`.

        `rejected`, what was rejected before anything is decoded, comes first, without clips.
        """
        if rejected:
            yield files.nothing_but(list(rejected))
        workers = files.workers_for({one.file for one in requests}, workers)
        kinds, preparer = tuple(KINDS[stream] for stream in streams), self.backbone.preparer
        work = functools.partial(jobs.prepare, videos=folder, preparer=preparer, kinds=kinds)
        outcomes = files.outcomes_of(jobs.make_jobs(list(requests)), work, workers, timeout_s)
        yield from self._embed_outcomes(outcomes, folder, streams)

    def _embed_outcomes(
        self, outcomes: Iterable[Outcome], folder: Path, streams: Sequence[str]
    ) -> Iterator[Embedded]:
        for part in files.embed_outcomes(
            self.run, self.backbone, outcomes, folder, streams, self.batch_size
        ):
            yield sketched(part, self.sketch)

    def embed_split(self, split: Split, batch_size: int = 64, **options) -> Embedded:
        """The same for clips whose features are on disk; see `embed.embed`."""
        return sketched(embed(self.run, split, batch_size, **options), self.sketch)

    # ---- synchrony ------------------------------------------------------------------------------

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """What `scav score --calibrate` has stored beside the model; None where it has not."""
        path = self.run.path
        return None if path is None else calibration.load(path, self.identity)

    def tracks(self, path: str | Path, stream: str) -> list[Track]:
        """The features of a file's "visual" or "audio" for `synchrony`, of any length.

        Raises:
          InputError: it cannot be used (the message says why), or the model is not calibrated, so
            that nobody knows into which windows a sound is cut.
        """
        if self.calibration is None:
            raise InputError(f"{self.run.path}: expected a calibrated model; {calibration.MEND}")
        seconds = self.calibration.clip_seconds
        (found,) = tracks_of(self.backbone, [(Path(path), stream)], seconds)
        if isinstance(found, str):
            raise InputError(f"{path}: cannot be used: {found}")
        return found

    def synchrony(
        self, visual: Track | Sequence[Track], audio: Track | Sequence[Track], **how
    ) -> Synchrony:
        """How well a sound fits a picture, and where it belongs; a pure function of features.

            found = model.synchrony(model.tracks("a.mp4", "visual"), model.tracks("b.wav", "audio"))
            found.offset, found.low, found.high, found.score

        Args:
          visual: the picture, one track.
          audio: the sound, or its windows.
          **how: of `retrieval.synchrony.synchrony`: `around`, `step_s`, `calibration` (default: the
            model's own, or none).

        Raises:
          InputError: see `retrieval.synchrony.synchrony`.
        """
        (picture,) = [visual] if isinstance(visual, Track) else visual
        windows = [audio] if isinstance(audio, Track) else audio
        if "calibration" not in how:
            how["calibration"] = self.calibration
        return synchrony(self.run, picture, windows, **how)

    def embed_outcome(self, outcome: Outcome, folder: Path, streams: Sequence[str]) -> Embedded:
        """The same for one clip that was decoded elsewhere, by `extract.jobs.prepare`."""
        (found,) = self._embed_outcomes([outcome], folder, streams)
        return found


def load(
    path: str | Path,
    *,
    weights: Mapping[str, str | Path] | None = None,
    trust: Collection[str] = (),
) -> Model:
    """A model from a run of `scav_jax.train`, or from a directory that `scav_jax.export` wrote.

    Args:
      path: of the directory, or `owner/name[@revision]`: an export on the Hugging Face hub, whose
        parameters, config, fingerprint, sketch and calibration are downloaded once and kept, and
        no code.
      weights: of the backbone, by its sides' names (`{"clip": FOLDER, "beats": FILE}`), for a model
        that is to embed files; they must be those that made the training data.
      trust: sides of the backbone, objectives and distances that are not of this package, by dotted
        path, which may be imported. A model that comes from elsewhere names code as it likes, and
        it is not imported without this word (or weights given under that name).

    Raises:
      InputError: no model there, an unfinished one, or weights of another backbone (named).
    """
    path = _at(path)
    model = Model(trained(path, trust), weights, trust)
    if is_exported(path):
        _check_whole(model)
    _ = model.sketch  # says now what is wrong with it
    if weights:
        _ = model.backbone  # says now what is wrong with them
    return model


def trained(path: str | Path, trust: Collection[str] = ()) -> Run:
    """What `load` has of a model but for its backbone: towers, objective and parameters.

    Raises:
      InputError: no model there, or an unfinished one.
    """
    path = _at(path)
    return load_exported(path, trust) if is_exported(path) else load_run(path)


def is_exported(path: Path) -> bool:
    """Whether a directory holds what `scav_jax.export` wrote, and not a run."""
    return (path / PARAMETERS_FILE).is_file()


def _at(path: str | Path) -> Path:
    """The directory of a model: itself, or where one of the hub was downloaded to.

    Of `runs/mine` that is not there, where `runs` is, no hub is asked; of `runs/mine@main` one is.
    """
    on_hub, path = weights_files.HUB_ID.fullmatch(str(path)), Path(path)
    if path.exists() or not on_hub or (path.parent.is_dir() and not on_hub["revision"]):
        return path
    return weights_files.snapshot(on_hub["id"], on_hub["revision"], EXPORTED, "model")


def load_as_asked(arguments: argparse.Namespace) -> Model:
    """The model that a command line with the options of `commands.add_model` names.

    Raises:
      InputError: as for `load`, and a classifier: it is no model to search with.
    """
    if arguments.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # before the first array
    weights = backbones.parse_weights(arguments.weights)
    model = load(arguments.model, weights=weights, trust=arguments.trust)
    if model.run.objective.classes:
        start = model.run.config["train"]["init_from"]
        raise InputError(
            f"{arguments.model}: expected a model that was trained for retrieval, this one "
            "classifies: nothing made its embeddings of picture and sound lie near each other; use "
            f"{f'the run that it started from ({start})' if start else 'another run'}"
        )
    return model


def _check_backbone(backbone: Backbone, expected: dict) -> None:
    """Raises `InputError` where features would mean something else than in training.

    Other versions of the decoding libraries are worth a warning: their frames differ in last bits.
    """
    got = make_fingerprint(backbone)
    libraries, others = zip(_libraries_and_rest(expected), _libraries_and_rest(got), strict=True)
    differs = fingerprint_difference(*others)
    if differs:
        raise InputError(
            "expected the extractor that the model was trained with, this one differs "
            f"({differs}); give the same weights, or use the version of scav_jax that extracted "
            "the features"
        )
    differs = fingerprint_difference(*libraries)
    if differs:
        warnings.warn(
            f"files are decoded by other versions than in training ({differs}): features may "
            "differ slightly",
            stacklevel=3,
        )


def _libraries_and_rest(fingerprint: dict) -> tuple[dict, dict]:
    """The versions of what decodes, and the rest of a fingerprint."""
    decoding = fingerprint["decoding"]
    libraries = {name: version for name, version in decoding.items() if name != "rules"}
    return libraries, fingerprint | {"decoding": {"rules": decoding.get("rules")}}


# ---- an exported model ----------------------------------------------------------------------


def flat_parameters(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by their names, `encoders.visual.blocks.attention.query.kernel`."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}


def load_exported(path: Path, trust: Collection[str] = ()) -> Run:
    """A model that `scav_jax.export` wrote; needs no orbax.

    Args:
      path: of the directory.
      trust: as for `load`.

    Raises:
      InputError: it holds other parameters than its config describes, or cannot be read, or names
        code that nobody trusts.
    """
    config = _exported_config(path)
    stored = weights_files.read(path / PARAMETERS_FILE)
    what = "the extractor of an exported model"
    fingerprint = _part(read_document, path / PREPROCESSING_FILE, what)["fingerprint"]
    try:
        doors.check_trusted(code_beside_backbone(config), trust)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    encoders, objective = build(from_dict(config, path / CONFIG_FILE))
    like = parameter_shapes(encoders, objective, config["features"]["widths"])
    shapes = {name.replace(".", "/"): tuple(values.shape) for name, values in stored.items()}
    check_same_shapes(like, shapes, path)
    config["features"]["fingerprint"] = fingerprint
    params = unflatten_dict(stored, sep=".")
    steps = tuple(config["export"]["averaged_steps"])
    return Run(path, config, encoders, objective, params, fingerprint, steps)


def code_beside_backbone(config: Mapping) -> dict[str, str]:
    """The dotted paths that a model's config names, by section: a user's own code."""
    named = {section: str(config[section]["name"]) for section in ("objective", "distance")}
    return {section: name for section, name in named.items() if ":" in name}


def _part(read: Callable[[Path, str, str], dict], file: Path, what: str) -> dict:
    """A file of an exported model, read; `InputError` where there is none."""
    try:
        return read(file, what, MEND)
    except FileNotFoundError:
        raise InputError(
            f"{file.parent}: expected an exported model, it has no {file.name}; {MEND}"
        ) from None


def _exported_config(path: Path) -> dict:
    """The config of an exported model."""
    what = "the config of an exported model"
    config = _part(read_object, path / CONFIG_FILE, what)
    about = config.get("export")
    version = about.get("format_version") if isinstance(about, dict) else None
    if version != EXPORT_VERSION:
        raise InputError(
            f"{path}: expected an exported model of format version {EXPORT_VERSION}, got "
            f"{short(version)}; export the run again with this version of scav_jax"
        )
    return unsealed(config, f"{path / CONFIG_FILE}: expected {what}", MEND)


def _check_whole(model: Model) -> None:
    """Raises `InputError` where an exported model is not what it was when it was written."""
    expected = model.run.config["export"]["identity"]
    if model.identity != expected:
        raise InputError(
            f"{model.run.path}: expected the model {expected}, got {model.identity}: a file was "
            "damaged or edited; export the run again"
        )
