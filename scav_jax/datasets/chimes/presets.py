"""What is rendered: the parameters, the presets, and which performances and clips they make."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from reprlib import repr as short  # of words, which may be of any length

from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.base.ranges import read_whole

SPLITS = ("train", "validation", "test", "unseen_instruments")
MOST_CLIPS = 1_000_000  # forty times the largest preset's


@dataclass(frozen=True)
class Parameters:
    """Everything that decides what is rendered (besides the seed). One value each, no hidden ones.

    What makes retrieval hard or easy, the strongest first:

    * `flash`, `sensor_noise`: how far a strike stands out of the noise in the picture. A pixel's
      noise averages out over a cell of an 8x8 grid, and does so the less, the larger
      `noise_grain_px` is: 0.5 is a sensor's, 4 is a hard, blotchy picture.
    * `events_per_second`: fewer strikes, fewer distinguishing moments.
    * `training_instruments` and `training_performances`: one performance an instrument is hard.
    * `rhythm_spread`, `rest_probability`, `tempo_drift`: how unlike each other the rhythms of two
      clips are. With all three at 0 every clip is a steady pulse and only the order of bars tells.
    * `mallet_opacity`: moving mallets announce a strike and show which bar. 0 hides them.
    * `performance_delay_ms`, `event_delay_ms`: how far sound and picture are out of step.
    * `flash_decay_s`, `vibration_px`: how long and how much a struck bar is seen to ring.
    * `room_noise`: how far a strike stands out of the noise in the sound.
    * `strength_spread`: how unlike strikes are in strength, which is both seen and heard.
    * `camera_jitter_px`: slow movement of the whole picture.
    * `min_bars`, `max_bars`: more bars make more orders; rhythm alone already tells much.

    Attributes:
      training_instruments: instruments of the splits train, validation and test.
      training_performances: performances of each of them in train.
      validation_performances: performances in validation, all together.
      test_performances: performances in test, all together.
      unseen_instruments: instruments of the split unseen_instruments, in no other split.
      unseen_performances: performances in that split, all together.
      performance_seconds: how long each performance lasts.
      clip_seconds: how long a clip is; a rest that is shorter at a performance's end is no clip.
      width: of the picture in pixels, a multiple of 16.
      height: the same.
      frame_rate: frames a second.
      audio_rate_hz: samples a second, mono.
      crf: H.264 constant rate factor; smaller is cleaner and larger on disk.
      min_bars: fewest bars of an instrument.
      max_bars: most bars of an instrument.
      events_per_second: mean rate of strikes.
      rhythm_spread: standard deviation of the logarithm of the time between strikes.
      rest_probability: share of strikes after which one strike's time passes in silence.
      tempo_drift: amplitude of the slow change of tempo, as a fraction.
      strength_spread: width of the uniform range of strengths below 1.
      flash: how far a struck bar goes towards full brightness, 0..1.
      flash_decay_s: time constant of the flash.
      vibration_px: amplitude of the struck bar's vertical displacement.
      mallet_opacity: 0 (invisible) to 1.
      sensor_noise: standard deviation of a pixel's noise; full scale is 1.
      noise_grain_px: standard deviation of the blur that makes the noise's grain.
      camera_jitter_px: amplitude of the camera's slow movement.
      room_noise: root mean square of the noise in the sound; full scale is 1.
      performance_delay_ms: the largest delay of a performance's sound against its picture.
      event_delay_ms: the largest further delay of one strike. Delays are uniform, of either sign.
      rooms: how many rooms there are; 0: no performance is in a room.
      rooms_per_performance: in how many of them each performance is seen and heard, a file each.
      room_light: a room's light, of full scale: the picture keeps 1 - 2 room_light of its contrast.
      room_response_db: the largest loss of a room's frequency response in any band.
      shared_scores: how many performances, of other instruments in turn, play one score.
      score_jitter_ms: by how much each moves the strikes of a score that it shares, at most.
      other_times: 1: the sound plays another score than the picture shows, so timing tells nothing.
    """

    training_instruments: int
    training_performances: int
    validation_performances: int
    test_performances: int
    unseen_instruments: int
    unseen_performances: int
    performance_seconds: float = 68.0
    clip_seconds: float = 4.0
    width: int = 96
    height: int = 64
    frame_rate: int = 25
    audio_rate_hz: int = 16000
    crf: int = 23
    min_bars: int = 5
    max_bars: int = 8
    events_per_second: float = 2.2
    rhythm_spread: float = 0.3
    rest_probability: float = 0.12
    tempo_drift: float = 0.15
    strength_spread: float = 0.5
    flash: float = 0.4
    flash_decay_s: float = 0.18
    vibration_px: float = 0.8
    mallet_opacity: float = 1.0
    sensor_noise: float = 0.03
    noise_grain_px: float = 1.0
    camera_jitter_px: float = 0.5
    room_noise: float = 0.004
    performance_delay_ms: float = 12.0
    event_delay_ms: float = 8.0
    rooms: int = 0
    rooms_per_performance: int = 1
    room_light: float = 0.08
    room_response_db: float = 18.0
    shared_scores: int = 1
    score_jitter_ms: float = 0.0
    other_times: int = 0

    def __post_init__(self) -> None:
        """Raises `InputError` that names the parameter which cannot be rendered."""
        ranges = {field.name: (0.0, float("inf")) for field in fields(self)}
        ranges |= dict.fromkeys(("flash", "mallet_opacity", "rest_probability"), (0.0, 1.0))
        ranges |= dict.fromkeys(("strength_spread", "tempo_drift"), (0.0, 0.9))
        ranges |= dict.fromkeys(("sensor_noise", "room_noise"), (0.0, 0.5))
        ranges |= dict.fromkeys(("performance_delay_ms", "event_delay_ms"), (0.0, 200.0))
        ranges |= {"crf": (0, 51), "min_bars": (2, 8), "max_bars": (2, 8), "noise_grain_px": (0, 8)}
        ranges |= {"rhythm_spread": (0.0, 1.0), "camera_jitter_px": (0.0, 2.0)}
        ranges |= {"events_per_second": (0.5, 8.0), "flash_decay_s": (0.02, 2.0)}
        ranges |= {"vibration_px": (0.0, 3.0), "width": (32, 512), "height": (32, 512)}
        ranges |= {"frame_rate": (5, 120), "audio_rate_hz": (8000, 48000)}
        ranges |= {"training_instruments": (1, 9999), "clip_seconds": (0.5, 600)}
        ranges |= {"performance_seconds": (0.5, 3600)}  # which is rendered whole, in memory
        ranges |= {"rooms": (0, 999), "rooms_per_performance": (1, max(self.rooms, 1))}
        ranges |= {"room_light": (0.0, 0.2), "room_response_db": (0.0, 40.0)}
        ranges |= {
            "shared_scores": (1, 999),
            "score_jitter_ms": (0.0, 200.0),
            "other_times": (0, 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most or value == float("inf"):
                raise InputError(f"chimes: expected {name} in {least:g}..{most:g}, got {value!r}")
        for name in ("width", "height"):
            if getattr(self, name) % 16:
                raise InputError(
                    f"chimes: expected {name} to be a multiple of 16, got {getattr(self, name)}"
                )
        if self.min_bars > self.max_bars:
            raise InputError(
                f"chimes: expected min_bars <= max_bars, got {self.min_bars} > {self.max_bars}"
            )
        if self.performance_seconds < self.clip_seconds:
            raise InputError(
                f"chimes: expected performance_seconds >= clip_seconds, got "
                f"{self.performance_seconds:g} < {self.clip_seconds:g}"
            )
        if self.unseen_performances and not self.unseen_instruments:
            raise InputError("chimes: unseen_performances needs unseen_instruments of at least 1")
        clips = self.clips_per_performance * sum(count for *_, count in self.performed.values())
        clips *= self.rooms_per_performance if self.rooms else 1
        if clips > MOST_CLIPS:
            raise InputError(
                f"chimes: expected at most {MOST_CLIPS:,} clips in all, got {clips:,}: give fewer "
                "performances, instruments or rooms_per_performance, or longer clip_seconds"
            )

    @property
    def clips_per_performance(self) -> int:
        """Whole clips that a performance is cut into."""
        return int(self.performance_seconds / self.clip_seconds + 1e-9)

    @property
    def performed(self) -> dict[str, tuple[int, int, int]]:
        """Of each split its first instrument, how many it has, and how many performances."""
        trained, unseen = self.training_instruments, self.unseen_instruments
        return {
            "train": (0, trained, trained * self.training_performances),
            "validation": (0, trained, self.validation_performances),
            "test": (0, trained, self.test_performances),
            "unseen_instruments": (trained, unseen, self.unseen_performances),
        }


PRESETS = {
    # Performances of 16 s, not 60-90 s: for tests, whose time is short.
    "tiny": Parameters(
        training_instruments=3,
        training_performances=2,
        validation_performances=2,
        test_performances=3,
        unseen_instruments=1,
        unseen_performances=2,
        performance_seconds=16.0,
    ),
    "demo": Parameters(
        training_instruments=24,
        training_performances=3,
        validation_performances=12,
        test_performances=60,
        unseen_instruments=10,
        unseen_performances=30,
    ),
    "large": Parameters(
        training_instruments=240,
        training_performances=4,
        validation_performances=48,
        test_performances=240,
        unseen_instruments=60,
        unseen_performances=180,
    ),
    # Neither part of a clip is enough: timing and instrument leave 12 rooms, the room 42 clips.
    "rooms": Parameters(
        training_instruments=24,
        training_performances=2,
        validation_performances=2,
        test_performances=5,
        unseen_instruments=3,
        unseen_performances=3,
        rooms=24,
        rooms_per_performance=12,
    ),
}
# Six instruments play each score: timing alone leaves 6, the instrument alone 40 or so.
PRESETS["mixed"] = replace(PRESETS["demo"], shared_scores=6, score_jitter_ms=5.0)
# The control of `rooms`: sound and picture share the instrument and the room, and no timing.
PRESETS["static"] = replace(PRESETS["rooms"], other_times=1)
# As large as `large`, and harder: an easy `large` cannot tell good from better.
PRESETS["hard"] = replace(
    PRESETS["large"],
    events_per_second=0.71,
    rhythm_spread=0.15,
    rest_probability=0.05,
    tempo_drift=0.05,
    sensor_noise=0.087,
    noise_grain_px=2.0,
    room_noise=0.019,
    performance_delay_ms=78.0,
    event_delay_ms=78.0,
)


def preset(name: str) -> Parameters:
    """The parameters of a preset; `InputError` for an unknown name."""
    if name not in PRESETS:
        raise InputError(
            f"chimes: expected a preset of {', '.join(PRESETS)}, got {name!r}."
            + did_you_mean(name, list(PRESETS))
        )
    return PRESETS[name]


def override(parameters: Parameters, assignments: Iterable[str]) -> Parameters:
    """Parameters with `name=value` assignments applied, each value of the parameter's own type.

    >>> override(PRESETS["tiny"], ["flash=0.3", "crf=20"]).flash
    0.3
    """
    types = {field.name: type(getattr(parameters, field.name)) for field in fields(parameters)}
    changes = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"chimes: expected name=value (as in flash=0.3), got {assignment!r}")
        if name not in types:
            raise InputError(
                f"chimes: no parameter {name!r}.{did_you_mean(name, list(types))} "
                f"There are {', '.join(types)}"
            )
        try:
            changes[name] = read_whole(text) if types[name] is int else float(text)
        except ValueError:
            kind = "a whole number" if types[name] is int else "a number"
            raise InputError(f"chimes: expected {name} to be {kind}, got {short(text)}") from None
    return replace(parameters, **changes)


@dataclass(frozen=True)
class Performance:
    """One video file: an instrument, and which of its performances this is.

    Attributes:
      instrument: as `instrument_007`; the label of its clips.
      index: counts the performances of the instrument, whatever the split.
      split: one of `SPLITS`.
      room: as `room_03`, where it is seen and heard; "" is nowhere.
      shared_score: the score that it plays with others; "" is its own.
    """

    instrument: str
    index: int
    split: str
    room: str = ""
    shared_score: str = ""

    @property
    def played(self) -> str:
        """As `instrument_007_02`: what is struck when comes from this name and the seed alone."""
        return f"{self.instrument}_{self.index:02d}"

    @property
    def name(self) -> str:
        """The same with its room, `instrument_007_02_room_03`: of the file, and of its noise."""
        return f"{self.played}_{self.room}" if self.room else self.played

    @property
    def file(self) -> str:
        """Where its video is, relative to the data set's folder."""
        return f"{self.split}/{self.name}.mp4"


def performances(parameters: Parameters) -> list[Performance]:
    """All performances, split after split. Every performance is in exactly one split."""
    played: dict[str, int] = {}
    result = []
    for split in SPLITS:
        first, instruments, count = parameters.performed[split]
        for number in range(count):
            instrument = f"instrument_{first + number % instruments:03d}"
            index = played.get(instrument, 0)
            played[instrument] = index + 1
            group = number // parameters.shared_scores
            score = f"{split}/score_{group:03d}" if parameters.shared_scores > 1 else ""
            for room in _rooms_of(number, parameters):
                result.append(Performance(instrument, index, split, room, score))
    return result


def _rooms_of(number: int, parameters: Parameters) -> list[str]:
    """The rooms of a split's performance: neighbours on a circle, another first one each time."""
    if not parameters.rooms:
        return [""]
    first = number * (parameters.rooms // 2 + 1)
    places = [(first + step) % parameters.rooms for step in range(parameters.rooms_per_performance)]
    return [f"room_{place:02d}" for place in places]


def clips(parameters: Parameters) -> list[dict[str, str]]:
    """The rows of `clips.csv`: file, start, end, id, label, split. Times are in seconds."""
    return [
        {
            "file": performance.file,
            "start": f"{k * parameters.clip_seconds:g}",
            "end": f"{(k + 1) * parameters.clip_seconds:g}",
            "id": f"{performance.name}_{k:02d}",
            "label": performance.instrument,
            "split": performance.split,
        }
        for performance in performances(parameters)
        for k in range(parameters.clips_per_performance)
    ]
