"""A trained model in three lines: load it, embed a file, search an index.

    model = load("runs/demo")                       # or a directory that scav_jax.export wrote
    query = model.embed("door.wav")
    hits = index.search(query, "a2v", k=10)         # of scav_jax.index

Files go the way that training data went: decoded, through the frozen backbone that the model was
trained with, rounded to float16 as features on disk are, trimmed, encoded. What a clip becomes
depends on the clip alone: not on what is embedded with it, nor on how it is batched.

A query may have one stream only, a sound or a silent film. Then the other one is taken to be as
long as it is: a film has the audio steps of a silence of its length (0.16 s each, whole ones only),
and a sound has pictures at 25 Hz. They are not encoded; but they say which steps are used, and on
which grid, where a model resamples before its towers.
"""

import functools
import hashlib
import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from scav_jax.checkpoints import (
    Run,
    build,
    check_same_shapes,
    load_run,
    parameter_shapes,
    read_config,
)
from scav_jax.distances import retrieval_form
from scav_jax.embed import STREAMS, Embedded, embed_clips, join
from scav_jax.errors import InputError
from scav_jax.extract import backbones, jobs, pool
from scav_jax.extract.backbones import Backbone, Features
from scav_jax.extract.jobs import Job, Outcome, make_jobs
from scav_jax.extract.manifest import (
    LAST_CLIP_TOLERANCE_S,
    ClipRequest,
    cut_id,
    cut_whole_videos,
    list_clips,
)
from scav_jax.extract.program import make_fingerprint
from scav_jax.extract.streams import (
    Unusable,
    decoder_errors,
    libraries,
    stream_kinds,
    stream_seconds,
)
from scav_jax.features import Clip, fingerprint_difference, fingerprint_id, original

PARAMETERS_FILE = "model.safetensors"
PREPROCESSING_FILE = "preprocessing.json"
EXPORT_VERSION = 1
CLIPS_AT_ONCE = 64  # what `stream` holds in memory
PICTURE_HZ = 25.0  # the frames that a sound without a picture is taken to have
KINDS = {"visual": "video", "audio": "audio"}  # what a stream is called in a file
TIMEOUT_S = 300.0
BATCH_SIZES = {"cpu": 1}  # on a CPU, more at once is not faster
BATCH_SIZE = 16


class Model:
    """A trained model that takes files.

    Attributes:
      run: the towers, parameters and config (see `checkpoints.Run`).
      fingerprint: of the extractor that its features come from.
      distance: (name, options) that ranks: what it was trained with, in its retrieval form.
      batch_size: how many clips are encoded at once; part of what makes latents equal to the bit.
    """

    def __init__(self, run: Run, backbone: Backbone | None = None):
        self.run = run
        self.fingerprint = original(run.fingerprint)
        self.distance = retrieval_form(run.objective.distance, run.objective.distance_options)
        self.batch_size = BATCH_SIZES.get(jax.default_backend(), BATCH_SIZE)
        self._backbone = backbone
        if backbone is not None:
            _check_backbone(backbone, self.fingerprint)

    def __repr__(self) -> str:
        return f"Model({str(self.run.path)!r}, identity={self.identity!r})"

    @functools.cached_property
    def identity(self) -> str:
        """16 hexadecimal digits: models with the same digits give the same latents and ranks.

        Of the parameters, of what the config says of towers, alignment and distance, and of the
        extractor; where a run lies and how it was trained are no part of it.
        """
        config = self.run.config
        told = {
            "encoders": config["encoders"],
            "distance": config["distance"],
            "align": config["data"]["align"],
            "features": fingerprint_id(self.fingerprint),
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for name, values in sorted(flat_parameters(self.run.params).items()):
            digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    @property
    def backbone(self) -> Backbone:
        """The frozen models that make features; `plain` is made when it is first needed."""
        if self._backbone is None:
            name = self.fingerprint.get("backbone", {}).get("name")
            if name != "plain":
                raise InputError(
                    f"{self.run.path}: this model was trained on features of the backbone "
                    f"{name!r}, whose weights are not part of it; give --clip-weights and "
                    "--beats-weights (in Python: load(..., clip_weights=..., beats_weights=...))"
                )
            backbone = backbones.load("plain")
            _check_backbone(backbone, self.fingerprint)
            self._backbone = backbone
        return self._backbone

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
            raise InputError(_nothing_usable(rejected))
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
        workers: int = 0,
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
          root: what ids of single files are relative to; None takes the path as it is given.
          workers: processes that decode. 0 decodes here; with one or more, a file that hangs or
            crashes the decoder is rejected too.
          timeout_s: the limit for one clip, with workers.

        Yields:
          Embedded clips in the order of the files, at most `CLIPS_AT_ONCE` together, with the
          rejected ones that came before them; the last may have rejected ones only.

        Raises:
          InputError: no such file, times or streams that make no sense, features or weights of
            another extractor.
        """
        check_times(start, end, clip_seconds)
        folder, requests, streams = _requests(paths, clip_seconds, start, end, streams, root)
        yield from self.embed_requests(
            requests, folder, streams=streams, workers=workers, timeout_s=timeout_s
        )

    def embed_requests(
        self,
        requests: Sequence[ClipRequest],
        folder: Path,
        *,
        streams: Sequence[str] = STREAMS,
        workers: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> Iterator[Embedded]:
        """The same for a list of clips, as `extract.manifest` makes it; see `stream`."""
        kinds = tuple(KINDS[stream] for stream in streams)
        preparer = self.backbone.preparer
        work = functools.partial(jobs.prepare, videos=folder, preparer=preparer, kinds=kinds)
        clips: list[Clip] = []
        rejected: list[dict] = []
        for outcome in _outcomes(make_jobs(list(requests)), work, workers, timeout_s):
            try:
                clips.append(self._clip(outcome, streams, folder))
            except Unusable as unusable:
                stage, reason = unusable.stage, unusable.reason
                rejected.append(outcome.request.rejection(stage, reason))
            if len(clips) == CLIPS_AT_ONCE:
                yield self._encoded(clips, streams, rejected)
                clips, rejected = [], []
        if clips or rejected:
            yield self._encoded(clips, streams, rejected)

    def _encoded(self, clips: list[Clip], streams: Sequence[str], rejected: list[dict]) -> Embedded:
        if not clips:
            return _nothing(rejected)
        found = embed_clips(self.run, clips, streams, batch_size=self.batch_size)
        return replace(found, rejected=rejected)

    def _clip(self, outcome: Outcome, streams: Sequence[str], folder: Path) -> Clip:
        """Features as they are stored; `Unusable` if the clip was rejected or they are bad."""
        if outcome.prepared is None:
            raise Unusable(outcome.rejection["stage"], outcome.rejection["reason"])
        prepared = outcome.prepared
        encode = self.backbone.encode
        features = encode([prepared])[0] if encode else (prepared.visual, prepared.audio)
        clip = outcome.clip(_stand_in(features, outcome, streams))
        return replace(clip, source=str((folder / clip.source).absolute()))


def load(
    path: str | Path,
    *,
    clip_weights: str | Path | None = None,
    beats_weights: str | Path | None = None,
) -> Model:
    """A model from a run of `scav_jax.train`, or from a directory that `scav_jax.export` wrote.

    Args:
      path: of the directory.
      clip_weights, beats_weights: of the backbone `clip_beats`, for a model that was trained on its
        features; its settings are those of the training data, and its weights must be the same.

    Raises:
      InputError: no model there, an unfinished one, or weights of another backbone (named).
    """
    path = Path(path)
    exported = (path / PARAMETERS_FILE).is_file()
    run = load_exported(path) if exported else load_run(path)
    backbone = None
    if clip_weights is not None or beats_weights is not None:
        about = run.fingerprint.get("backbone", {})
        if about.get("name") != "clip_beats":
            raise InputError(
                f"{path}: expected no weights, got some: the model was trained on features of "
                f"{about.get('name')!r}"
            )
        backbone = backbones.load(
            "clip_beats",
            clip_weights=clip_weights,
            beats_weights=beats_weights,
            dtype=about["clip"]["dtype"],
            output=about["clip"]["output"],
        )
    model = Model(run, backbone)
    if exported:
        _check_whole(model)
    return model


# ---- an exported model ----------------------------------------------------------------------


def flat_parameters(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by their names, `encoders.visual.block_0.attention.query.kernel`."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}


def load_exported(path: Path) -> Run:
    """A model that `scav_jax.export` wrote; needs no orbax.

    Raises:
      InputError: it holds other parameters than its config describes, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config = read_config(path)
    version = config.get("export", {}).get("format_version")
    if version != EXPORT_VERSION:
        raise InputError(
            f"{path}: expected an exported model of format version {EXPORT_VERSION}, got "
            f"{version}; export the run again with this version of scav_jax"
        )
    file = path / PARAMETERS_FILE
    try:
        stored = load_file(file)
        fingerprint = json.loads((path / PREPROCESSING_FILE).read_text())["fingerprint"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: expected an exported model ({error}); export it again") from None
    encoders, objective = build(config)
    like = parameter_shapes(encoders, objective, config["features"]["widths"])
    shapes = {name.replace(".", "/"): tuple(values.shape) for name, values in stored.items()}
    check_same_shapes(like, shapes, path)
    config["features"]["fingerprint"] = fingerprint
    params = unflatten_dict(stored, sep=".")
    steps = tuple(config["export"]["averaged_steps"])
    return Run(path, config, encoders, objective, params, fingerprint, steps)


def _check_whole(model: Model) -> None:
    """Raises `InputError` where an exported model is not what it was when it was written."""
    expected = model.run.config["export"]["identity"]
    if model.identity != expected:
        raise InputError(
            f"{model.run.path}: expected the model {expected}, got {model.identity}: a file was "
            "damaged or edited; export the run again"
        )


# ---- what is asked for ----------------------------------------------------------------------


def check_times(start: float, end: float | None, clip_seconds: float | None) -> None:
    """Raises `InputError` for a part of a file that there cannot be."""
    if not 0 <= start < math.inf:
        raise InputError(f"start: expected seconds (0 or more), got {start:g}")
    if end is not None and not start < end < math.inf:
        raise InputError(f"end: expected seconds after the start ({start:g}), got {end:g}")
    if clip_seconds is not None and not 1.0 <= clip_seconds < math.inf:
        raise InputError(f"clip seconds: expected at least 1, got {clip_seconds:g}")


def _requests(
    paths: str | Path | Iterable[str | Path],
    clip_seconds: float | None,
    start: float,
    end: float | None,
    streams: Sequence[str] | None,
    root: str | Path | None,
) -> tuple[Path, list[ClipRequest], tuple[str, ...]]:
    """The clips that are wanted, the folder that their files are relative to, their streams."""
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise InputError("expected a file or a folder to embed, got none")
    if len(files) == 1 and files[0].is_dir():
        if start != 0.0 or end is not None:
            raise InputError("start, end: expected with single files, got them with a folder")
        listing = list_clips(files[0], None, clip_seconds)
        requests, _, _ = cut_whole_videos(listing, lambda file: _seconds(files[0] / file, "video"))
        return files[0], requests, _checked_streams(streams or STREAMS)
    for file in files:
        if not file.is_file():
            what = "it is a folder (give one alone)" if file.is_dir() else "there is none"
            raise InputError(f"{file}: expected a video or a sound file, {what}")
    chosen = _checked_streams(streams or _common_streams(files))
    names = [Path(file).absolute().as_posix() for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"expected each file once, got {twice} twice")
    ids = [_relative(file, root) for file in files]
    requests = [
        replace(window, id=name if window.id == "" else cut_id(name, window.start))
        for file, absolute, name in zip(files, names, ids, strict=True)
        for window in _windows(file, absolute, clip_seconds, start, end, chosen)
    ]
    return Path("/"), requests, chosen


def _relative(file: Path, root: str | Path | None) -> str:
    if root is None:
        return file.as_posix()
    try:
        return file.absolute().relative_to(Path(root).absolute()).as_posix()
    except ValueError:
        raise InputError(f"{file}: expected a file below {root}, it lies elsewhere") from None


def _windows(
    file: Path,
    absolute: str,
    clip_seconds: float | None,
    start: float,
    end: float | None,
    streams: Sequence[str],
) -> list[ClipRequest]:
    """The clips of one file; the id of what is not a whole file is "cut"."""
    whole = start == 0.0 and end is None
    alone = ClipRequest(absolute, start, end, "" if whole else "cut")
    if clip_seconds is None:
        return [alone]
    stop = _seconds(file, KINDS[streams[0]])
    if end is not None:
        stop = end if stop is None else min(end, stop)
    count = 0 if stop is None else int((stop - start + LAST_CLIP_TOLERANCE_S) // clip_seconds)
    starts = [start + number * clip_seconds for number in range(count)]
    cut = [ClipRequest(absolute, begin, begin + clip_seconds, "cut") for begin in starts]
    return cut or [alone]


def _seconds(file: Path, kind: str) -> float | None:
    """The length of a stream; None where it is not known, or the file cannot be read."""
    try:
        with decoder_errors():
            return stream_seconds(file, kind)
    except Unusable:
        return None  # said when its turn comes


def _checked_streams(streams: Sequence[str]) -> tuple[str, ...]:
    given = (streams,) if isinstance(streams, str) else tuple(streams)
    if not given or set(given) - set(STREAMS):
        raise InputError(f"streams: expected some of {', '.join(STREAMS)}, got {streams!r}")
    return tuple(stream for stream in STREAMS if stream in given)


def _common_streams(files: Sequence[Path]) -> tuple[str, ...]:
    """The streams that all readable files have, where they have the same ones; else both."""
    found = set()
    for file in files:
        try:
            with decoder_errors():
                kinds = stream_kinds(file)
        except Unusable:
            continue
        found.add(tuple(stream for stream in STREAMS if KINDS[stream] in kinds))
    (same,) = found if len(found) == 1 else (STREAMS,)
    return same or STREAMS


# ---- decoding -------------------------------------------------------------------------------


def _outcomes(
    todo: list[Job], work: Callable[[Job], Iterator[Outcome]], workers: int, timeout_s: float
) -> Iterator[Outcome]:
    """What becomes of each clip, in the order of the jobs."""
    if workers == 0:
        for job in todo:
            yield from work(job)
        return
    order, waiting = deque(job.number for job in todo), deque(todo)
    under_way: dict[int, list[Outcome]] = {}
    done: dict[int, list[Outcome]] = {}
    workers = min(workers, len(todo))
    for job, event in pool.run(work, waiting, workers=workers, timeout_s=timeout_s):
        if isinstance(event, pool.Lost):
            under_way.pop(job.number, None)
            waiting.appendleft(jobs.again(job, event))
        elif isinstance(event, pool.Done):
            done[job.number] = under_way.pop(job.number, [])
        else:
            under_way.setdefault(job.number, []).append(event.result)
        while order and order[0] in done:
            yield from done.pop(order.popleft())


def _stand_in(features: Features, outcome: Outcome, streams: Sequence[str]) -> Features:
    """Features with zeros in the stream that was not asked for; its steps are what counts."""
    visual, audio = features
    if "visual" not in streams:
        begin, end = outcome.visual_span
        frames = max(math.ceil((end - begin) * PICTURE_HZ), 1)
        visual = np.zeros((frames, visual.shape[1]), np.float32)
    if "audio" not in streams:
        audio = np.zeros_like(audio)
    return visual, audio


def _check_backbone(backbone: Backbone, expected: dict) -> None:
    """Raises `InputError` where features would mean something else than in training.

    Other versions of the decoding libraries are worth a warning: their frames differ in last bits.
    """
    got = make_fingerprint(backbone)
    decoders = libraries().keys()
    differs = fingerprint_difference(
        *({k: v for k, v in one.items() if k not in decoders} for one in (expected, got))
    )
    if differs:
        raise InputError(
            "expected the extractor that the model was trained with, this one differs "
            f"({differs}); give the same weights, or use the version of scav_jax that extracted "
            "the features"
        )
    differs = fingerprint_difference(
        *({k: v for k, v in one.items() if k in decoders} for one in (expected, got))
    )
    if differs:
        warnings.warn(
            f"files are decoded by other versions than in training ({differs}): features may "
            "differ slightly",
            stacklevel=3,
        )


# ---- nothing --------------------------------------------------------------------------------


def _nothing_usable(rejected: list[dict]) -> str:
    if not rejected:
        return "expected clips to embed, got none"
    first = rejected[0]
    if len(rejected) == 1:
        return f"{first['id']}: cannot be used: {first['reason']}"
    return (
        f"expected usable clips, all {len(rejected)} were rejected; the first, {first['id']}: "
        f"{first['reason']}"
    )


def _nothing(rejected: list[dict]) -> Embedded:
    none = np.zeros(0)
    return Embedded([], [], none, none, [], None, None, None, None, rejected=rejected)
