"""Frozen models that turn frames and sound into features: a side for each, in any pairing.

`VISUAL` and `AUDIO` name the sides that are here, `PAIRS` gives the usual pairings short names. A
side of one's own is a class of `sides.Visual` or `sides.Audio` in any module that can be imported:
it is named by its path, `my_package.dino:Dino`, and nothing here changes.

Features carry a fingerprint that says how they were made, and a model that was trained on them
carries it on, so that files become the same features wherever it is used (`from_fingerprint`). A
model may come from elsewhere: code that is not of this package is imported only where whoever runs
the program names it too.
"""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from scav_jax.base import doors
from scav_jax.base.documents import parse_json
from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.extract.backbones.beats_audio import BeatsAudio
from scav_jax.extract.backbones.checks import (
    as_json,
    check_sendable,
    check_side,
    features_of,
    told_by,
)
from scav_jax.extract.backbones.clip_visual import ClipVisual
from scav_jax.extract.backbones.pixels import PixelsAudio, PixelsVisual
from scav_jax.extract.backbones.plain import ColoursVisual, PlainAudio, PlainVisual
from scav_jax.extract.backbones.sides import Audio, NoAudio, NoVisual, Side, Visual
from scav_jax.extract.decoding import measured, media
from scav_jax.features.clip import FORMAT_VERSION, IMPORTED

VISUAL: dict[str, type[Visual]] = {
    "clip": ClipVisual,
    "plain": PlainVisual,
    "colours": ColoursVisual,
    "pixels": PixelsVisual,
    "none": NoVisual,
}
AUDIO: dict[str, type[Audio]] = {
    "beats": BeatsAudio,
    "plain": PlainAudio,
    "pixels": PixelsAudio,
    "none": NoAudio,
}
PAIRS = {
    "clip_beats": ("clip", "beats"),
    "plain": ("plain", "plain"),
    "clip_mel": ("clip", "plain"),  # what can be played, see `features.sides`
    "colours": ("colours", "plain"),
    "pixels": ("pixels", "pixels"),
}
REQUIRED = inspect.Parameter.empty
SIDES = {"visual": (VISUAL, Visual), "audio": (AUDIO, Audio)}
KINDS = {"visual": "video", "audio": "audio"}  # what a stream is called in a file

Features = tuple[Num[np.ndarray, "_N Dv"], Num[np.ndarray, "_M Da"]]
Weights = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """One clip as a worker leaves it: what the sides' `prepare` gave."""

    visual: np.ndarray
    audio: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.visual.nbytes + self.audio.nbytes


@dataclass(frozen=True)
class Preparer:
    """The workers' halves of both sides (see `sides`), which are sent to worker processes.

    Attributes:
      visual, audio: the halves.
      kinds: the streams of a file that are wanted.
      max_seconds: the longest clip.
      audio_step_s: seconds a step of sound.
    """

    visual: Visual
    audio: Audio
    kinds: tuple[str, ...]
    max_seconds: float
    audio_step_s: float


@dataclass
class Backbone:
    """A side for frames and one for sound.

    Attributes:
      visual, audio: the sides, ready for use.
      names: of the sides by stream, as `load` takes them.
      options: of the sides by stream, with all that was left open written out.
      weights: what was given for each name.
    """

    visual: Visual
    audio: Audio
    names: dict[str, str]
    options: dict[str, dict]
    weights: Weights

    @property
    def name(self) -> str:
        """The short name of the pair, or both sides' names."""
        both = tuple(self.names.values())
        short = [name for name, pair in PAIRS.items() if pair == both]
        return short[0] if short else "+".join(both)

    @property
    def sides(self) -> dict[str, Side]:
        """Both, by stream."""
        return {"visual": self.visual, "audio": self.audio}

    @property
    def preparer(self) -> Preparer:
        return Preparer(
            self.visual.preparer,
            self.audio.preparer,
            tuple(KINDS[stream] for stream, side in self.sides.items() if side.width),
            min(side.max_seconds for side in self.sides.values()),
            self.audio.step_s,
        )

    @property
    def encodes(self) -> bool:
        """Whether the parent has a half of the work."""
        return any(side.encode is not None for side in self.sides.values())

    @property
    def clips_at_once(self) -> int:
        """How many clips fill the devices."""
        return max(side.clips_at_once for side in self.sides.values())

    def encode(self, clips: Sequence[Prepared]) -> list[Features]:
        """Features of each clip, `[N, Dv]` and `[M, Da]`: float32, or uint8 where they are pixels.

        Two sides, two threads: one prepares and fetches while the other one computes.
        """
        with ThreadPoolExecutor(1) as beside:
            audio = beside.submit(features_of, self.audio, [clip.audio for clip in clips])
            visual = features_of(self.visual, [clip.visual for clip in clips])
            return list(zip(visual, audio.result(), strict=True))

    def clip_bytes(self, seconds: float) -> float | None:
        """What a clip takes on disk, where that is known before its frames are counted."""
        if self.visual.width and self.visual.steps is None:
            return None
        total = (self.visual.steps or 0) * self.visual.width * np.dtype(self.visual.dtype).itemsize
        if self.audio.width:
            each = self.audio.width * np.dtype(self.audio.dtype).itemsize
            total += seconds / self.audio.step_s * each
        return float(total)

    def fingerprint(self) -> dict:
        """What features depend on, for each stream; JSON types only."""
        found: dict[str, Any] = {"name": self.name}
        for stream, side in self.sides.items():
            found[stream] = {
                **told_by(self.names[stream], side),
                "name": self.names[stream],
                "options": {
                    name: value
                    for name, value in self.options[stream].items()
                    if name not in side.without_effect
                },
                "has_weights": self.names[stream] in self.weights,
            }
        return as_json(self.name, found)


def make_fingerprint(backbone: "str | Backbone") -> dict:
    """Everything that features depend on: the backbone's constants, rates, decoder versions."""
    model = load(backbone) if isinstance(backbone, str) else backbone
    fingerprint = {
        "format_version": FORMAT_VERSION,
        "backbone": model.fingerprint(),
        "frame_rate": "native",
        "audio_rate_hz": media.RATE_HZ,
        "audio_step_s": model.audio.step_s,
        "channels": "mean",
        "decoding": {"rules": media.DECODING_RULES, **measured.libraries()},
    }
    return json.loads(json.dumps(fingerprint))


# ---- from names to models -----------------------------------------------------------------------


def load(
    pair: str = "",
    *,
    visual: str = "none",
    audio: str = "none",
    weights: Weights | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Backbone:
    """A backbone, ready for use.

    Args:
      pair: one of `PAIRS`, instead of both sides.
      visual, audio: of `VISUAL` and `AUDIO`, or a dotted path (`my_package.dino:Dino`).
      weights: by the sides' names, a path or what else a side takes.
      options: by stream, such as `{"visual": {"output": "projected"}}`; under "" those of every
        side that has them.

    Raises:
      InputError: a name, option or weights that there are not; weights that are missing.
    """
    if pair:
        if pair not in PAIRS:
            raise InputError(
                f"--backbone: expected one of {', '.join(PAIRS)}, or --visual and --audio, got "
                f"{pair!r}.{did_you_mean(pair, list(PAIRS))}"
            )
        visual, audio = PAIRS[pair]
    names, given = {"visual": visual, "audio": audio}, dict(weights or {})
    if visual == audio == "none":
        raise InputError("--visual, --audio: expected a side for one of them at least, got none")
    classes = {stream: _side_class(stream, name) for stream, name in names.items()}
    takers = [names[stream] for stream, cls in classes.items() if "weights" in _parameters(cls)]
    for name in given:
        if name not in takers:
            raise InputError(
                f"--weights {name}: expected the name of a side with weights "
                f"({', '.join(takers) or 'here none has'}), got {name!r}"
            )
    resolved, made = _resolved(classes, options or {}), {}
    for stream, cls in classes.items():
        own, name = dict(resolved[stream]), names[stream]
        if name in takers and name in given:
            own["weights"] = given[name]
        elif name in takers and _parameters(cls)["weights"].default is REQUIRED:
            raise InputError(
                f"--weights {name}=PATH: expected the weights of {name}, which are not part of "
                "this package, got none"
            )
        made[stream] = cls(**own)
        if name != "none":
            where = f"--{stream} {name}"
            check_side(where, made[stream], SIDES[stream][1])
            if ":" in name:
                check_sendable(where, made[stream])
    return Backbone(**made, names=names, options=resolved, weights=given)


def from_fingerprint(
    about: Mapping[str, Any], weights: Weights | None = None, trust: Collection[str] = ()
) -> Backbone:
    """The backbone that `Backbone.fingerprint` told of.

    Args:
      about: what it told.
      weights: by the sides' names.
      trust: dotted paths that may be imported, besides those that `weights` has. Fingerprints come
        with models, and models from anywhere: a path that only a fingerprint names is not imported.

    Raises:
      InputError: a dotted path that nobody named, weights that are missing, features that were
        imported.
    """
    if IMPORTED in about:
        raise InputError(
            f"backbone {about['name']}: its features were imported, nothing here can make them of "
            "files; embed and index a data set of them (`scav index build --data DATA`)"
        )
    weights = dict(weights or {})
    sides = {stream: about[stream] for stream in SIDES}
    named = {f"{stream} backbone": side["name"] for stream, side in sides.items()}
    doors.check_trusted(named, {*VISUAL, *AUDIO, *trust, *weights})
    needed = [side["name"] for side in sides.values() if side["has_weights"]]
    missing = [name for name in dict.fromkeys(needed) if name not in weights]
    if missing:
        flags = " ".join(f"--weights {name}=PATH" for name in missing)
        pairs = ", ".join(f"{name!r}: PATH" for name in missing)
        raise InputError(
            f"backbone {about['name']}: expected its weights, which are not part of a model; give "
            f"{flags} (in Python: load(..., weights={{{pairs}}}))"
        )
    return load(
        **{stream: side["name"] for stream, side in sides.items()},
        weights=weights,
        options={stream: side["options"] for stream, side in sides.items()},
    )


def _side_class(stream: str, name: str) -> type[Side]:
    known, kind = SIDES[stream]
    cls = doors.find(f"--{stream}", name, known)
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise InputError(
            f"--{stream} {name}: expected a class of scav_jax.extract.backbones.sides."
            f"{kind.__name__}, got {cls!r:.80}"
        )
    return cls


def _parameters(cls: type[Side]) -> Mapping[str, inspect.Parameter]:
    """What a side may be given: `*more` and `**more` name no option."""
    given = inspect.signature(cls).parameters
    return {n: p for n, p in given.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _resolved(
    classes: Mapping[str, type[Side]], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """All options of each side: what was given, and the defaults of the others."""
    found = {
        stream: {n: p.default for n, p in _parameters(cls).items() if n != "weights"}
        for stream, cls in classes.items()
    }
    for stream, options in given.items():
        for name, value in options.items():
            takers = [s for s in found if stream in ("", s) and name in found[s]]
            if not takers:
                known = [n for s in found if stream in ("", s) for n in found[s]]
                raise InputError(
                    f"--option {name}: expected one that the {stream or 'visual or audio'} side "
                    f"has ({', '.join(dict.fromkeys(known)) or 'none'}), got {name!r}."
                    f"{did_you_mean(name, known)}"
                )
            for taker in takers:
                found[taker][name] = value
    for stream, values in found.items():
        if left := [name for name, value in values.items() if value is REQUIRED]:
            raise InputError(
                f"--option {stream}.{left[0]}=VALUE: expected one, {classes[stream].__name__} has "
                "no default for it"
            )
    return found


# ---- on the command line ------------------------------------------------------------------------


def parse_weights(words: Sequence[str]) -> dict[str, Path | str]:
    """`["clip=FOLDER", "beats=FILE"]` taken apart.

    >>> parse_weights(["clip=openai/clip-vit-base-patch32"])
    {'clip': 'openai/clip-vit-base-patch32'}
    """
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path) or name in found:
            raise InputError(
                f"--weights: expected NAME=PATH, once for each name, as in clip=FOLDER, got {word}"
            )
        found[name] = path
    return found


def parse_options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["visual.output=projected"]` taken apart for `load`; values are JSON, or else text.

    >>> parse_options(["dtype=bfloat16", "visual.size=224"])
    {'': {'dtype': 'bfloat16'}, 'visual': {'size': 224}}
    """
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        stream, _, name = key.rpartition(".")
        if not (name and equals) or stream not in ("", *SIDES):
            raise InputError(
                f"--option: expected NAME=VALUE, visual.NAME=VALUE or audio.NAME=VALUE, got {word}"
            )
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        found.setdefault(stream, {})[name] = value
    return found
