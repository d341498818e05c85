"""One process or many: starting together, agreeing, stopping at one step, ending when one is lost.

A plain single process initialises nothing here. Many (one per host or accelerator) start where
SLURM, Open MPI, an indexed job of Kubernetes or a TPU pod of GKE has set their environment, or with
`--coordinator`. Process 0 hosts JAX's coordination service, a small key-value store through which
the others learn what it decided. Every process has a thread that watches the others: JAX by itself
waits for a lost one inside a collective, then aborts with a stack of C++.
"""

import argparse
import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils

from scav_jax.base import errors, interrupts
from scav_jax.base.errors import InputError, first_line
from scav_jax.base.ranges import WAIT, check_range, read_whole
from scav_jax.training.config import difference

EXIT_LOST = 4  # another process ended
EXIT_TERMINATED = 143  # SIGTERM, as shells report it
HEARTBEAT_S = 0.5  # between two looks at the other processes
LEAVING_S = 3.0  # how long a process that is to end with another has to end by itself
FAREWELL_S = 30.0  # how long the coordinator then waits for the others' last words
# What has to be in the environment for JAX to detect a cluster by itself, and how many we are.
CLUSTERS = {
    "SLURM": (
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
        lambda: _count("SLURM_NTASKS"),
    ),
    "Open MPI": (
        ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
        lambda: _count("OMPI_COMM_WORLD_SIZE"),
    ),
    "GKE (TPU pod)": (
        ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"),
        lambda: len(os.environ["TPU_WORKER_HOSTNAMES"].split(",")),
    ),
    "Kubernetes (indexed job)": (("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"), lambda: 2),
}
# How the failure of a collective reads that another process no longer takes part in.
_COLLECTIVE_FAILED = re.compile(
    r"gloo|nccl|rccl|coordination|heartbeat|UNAVAILABLE|connection (closed|reset)", re.IGNORECASE
)

_T = TypeVar("_T")
_numbers: dict[str, int] = {}  # how often each kind of agreement was made: names its keys
_leaving = threading.Event()
_stopped_by: list[int] = []  # the signals that `Preemption` saw
_shell: list[subprocess.Popen] = []  # see `_leave_last_words`


# ---- starting ------------------------------------------------------------------------------


def start(arguments: argparse.Namespace) -> None:
    """Joins the other processes, if there are any; before anything else touches a device.

    Args:
      arguments: with those of `commands.add_processes`.

    Raises:
      InputError: arguments that do not fit each other. If the others do not come in time, the
        process ends with one line, for JAX cannot be interrupted while it waits.
    """
    _check(arguments)
    cluster = None if arguments.coordinator else _cluster()
    if not arguments.coordinator and cluster is None:
        return
    given = {}
    if arguments.coordinator not in (None, "auto"):
        given = {
            "coordinator_address": arguments.coordinator,
            "num_processes": arguments.num_processes,
            "process_id": arguments.process_id,
            # Without it JAX would ask SLURM and give a process only one of its devices.
            "cluster_detection_method": "deactivate",
        }
    if (os.environ.get("JAX_PLATFORMS") or "cpu").split(",")[0] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    limit = arguments.coordinator_timeout_seconds
    words = _not_answered(arguments, cluster, limit)
    give_up = _after(limit, lambda: _end(errors.EXIT_INPUT, f"error: {words}"))
    heartbeat = arguments.heartbeat_timeout_seconds
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=int(limit) + 60,  # ours comes first, and says more
            heartbeat_timeout_seconds=int(2 * heartbeat) + 10,
            shutdown_timeout_seconds=int(heartbeat) + 10,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes could not be joined: {first_line(error)[:300]}; give --coordinator "
            "HOST:PORT, --num-processes and --process-id"
        ) from error
    finally:
        give_up.cancel()
    if many():
        _leave_last_words()
        _Watch(heartbeat)


def _check(arguments: argparse.Namespace) -> None:
    count, index = arguments.num_processes, arguments.process_id
    for name in ("coordinator_timeout_seconds", "heartbeat_timeout_seconds"):
        check_range("--" + name.replace("_", "-"), getattr(arguments, name), WAIT)
    if arguments.coordinator in (None, "auto"):
        if count is not None or index is not None:
            raise InputError("--num-processes, --process-id: expected --coordinator HOST:PORT too")
        return
    host, _, port = arguments.coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(
            f"--coordinator: expected HOST:PORT, as in 10.0.0.1:8476, got {arguments.coordinator!r}"
        )
    if count is None or index is None:
        raise InputError("--coordinator: expected --num-processes and --process-id with it")
    if count < 1:
        raise InputError(f"--num-processes: expected at least 1, got {count}")
    if not 0 <= index < count:
        raise InputError(f"--process-id: expected 0 to {count - 1}, got {index}")


def _cluster() -> str | None:
    """The cluster whose environment says that there are several processes."""
    for name, (variables, count) in CLUSTERS.items():
        if all(os.environ.get(variable) for variable in variables) and count() > 1:
            return name
    return None


def _count(variable: str) -> int:
    """How many processes the environment says that there are."""
    try:
        return read_whole(os.environ.get(variable, "1"))
    except ValueError as error:
        raise InputError(f"{variable} (of the environment): {error}; correct or unset it") from None


def _not_answered(arguments: argparse.Namespace, cluster: str | None, limit: float) -> str:
    where = arguments.coordinator if cluster is None else f"of {cluster}"
    if arguments.process_id == 0:
        what = f"expected {arguments.num_processes} processes at {where}"
        return f"coordinator: {what}, not all came within {limit:g} s; start the others too"
    return (
        f"coordinator {where}: expected an answer, and all processes, within {limit:g} s; look "
        "whether process 0 runs there, the port is open and every process was started"
    )


# ---- agreeing ------------------------------------------------------------------------------


def many() -> bool:
    """Whether several processes train together."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return not many() or jax.process_index() == 0


def from_first(compute: Callable[[], _T]) -> _T:
    """What process 0 computes (JSON), in every process; the others wait as long as it takes."""
    if not many():
        return compute()
    key = _key("value")
    if jax.process_index() == 0:
        value = compute()
        _store().key_value_set(key, json.dumps(value))
        return value
    while True:
        try:
            return json.loads(_store().blocking_key_value_get(key, 10_000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def all_or_none(work: Callable[[], _T]) -> _T:
    """Does `work` in every process; an `InputError` of one of them is raised in all."""
    if not many():
        return work()
    key, result, problem = _key("problem"), None, ""
    try:
        result = work()
    except InputError as error:
        problem = str(error) or "error"
    store, own = _store(), jax.process_index()
    store.key_value_set(f"{key}/{own}", json.dumps(problem))
    store.wait_at_barrier(f"{key}/all", 24 * 3600 * 1000)  # a lost process ends this one anyway
    problems = {
        int(name.rsplit("/", 1)[1]): json.loads(text) for name, text in store.key_value_dir_get(key)
    }
    failed = {index: text for index, text in sorted(problems.items()) if text}
    if not failed:
        return result
    if len(failed) == len(problems) and len(set(failed.values())) == 1:
        raise InputError(failed[own])
    raise InputError("; ".join(f"process {index}: {text}" for index, text in failed.items()))


def check_same(document: dict) -> None:
    """Raises `InputError` in all processes unless all have this document; says what differs."""

    def compare() -> None:
        first = from_first(lambda: document)
        differs = difference(first, document)
        if differs:
            raise InputError(
                f"has another set-up than process 0 ({differs}); start every process with the "
                "same command, version and data"
            )

    all_or_none(compare)


def check_devices(devices: int) -> None:
    """Raises `InputError` if `train.devices` would leave out devices of a process."""
    if many() and devices not in (0, jax.device_count()):
        raise InputError(
            f"train.devices: expected 0 (all) or the {jax.device_count()} devices of all "
            f"{jax.process_count()} processes, got {devices}"
        )


# ---- stopping ------------------------------------------------------------------------------


def stopped() -> tuple[str, int]:
    """A word for what stopped a training, and what the program exits with."""
    if _stopped_by[-1:] == [signal.SIGINT]:
        return "interrupted", interrupts.EXIT_INTERRUPTED
    return "terminated", EXIT_TERMINATED


class Preemption:
    """Says after which step to stop once SIGTERM or Ctrl-C came: the same step in all processes.

    One process stops after the step under way. Many agree, through JAX's preemption service, on
    a step that none has passed; a signal to any one of them is enough. A second Ctrl-C ends the
    program at once (`base.interrupts`).
    """

    def __init__(self, deadline_s: float, saved: Callable[[], int | None]):
        """Args: seconds to save in, from the signal (many: from the agreed step); the last step on
        disk, for the words if that is too short."""
        self._deadline_s, self._saved = deadline_s, saved
        self._stopping, self._timer = False, None
        self._before: dict[int, Any] = {}
        if many():  # JAX has a handler of its own for SIGTERM
            self._handle(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        else:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handle(number, self._begin)

    def _handle(self, number: int, handler: Callable) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before[number] = signal.signal(number, handler)

    def __call__(self, step: int) -> bool:
        """Whether to save after this step and stop; to be called once after every step."""
        if many() and multihost_utils.reached_preemption_sync_point(step):
            self._begin(signal.SIGTERM)
        return self._stopping

    def close(self) -> None:
        """Takes the deadline back, and gives the signals back: all is saved."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self, number: int, *_) -> None:
        if not self._stopping:
            self._stopping = True
            _stopped_by.append(number)
            self._timer = _after(self._deadline_s, self._give_up)

    def _give_up(self) -> None:
        saved = self._saved()
        kept = f"step {saved} is the last one saved" if saved else "nothing was saved before"
        word, code = stopped()
        _end(
            code,
            f"{word}: no checkpoint could be written within the {self._deadline_s:g} s of "
            f"train.preemption_deadline_s; {kept}, and the same command resumes",
        )


# ---- ending --------------------------------------------------------------------------------


def run_program(main: Callable[[], int | None]) -> None:
    """`errors.run_program` for a program of one process or many.

    Of many, one that fails tells the others why, which then end too (`EXIT_LOST`): none is left
    waiting in a collective.
    """

    def program() -> int | None:
        try:
            return main()
        except Exception as error:
            lost = _lost(error) if many() else None
            if lost is not None:
                _end(EXIT_LOST, lost, together=True)
            if many():
                _announce(first_line(error)[:300])
            raise

    try:
        errors.run_program(program)
    except SystemExit as end:
        if not (many() and _leaving.is_set()):
            raise
        _end(end.code, together=True)
    except Exception:
        if not many():
            raise
        traceback.print_exc()
        _end(1, together=True)


class _Watch:
    """Ends this process, with a word, once another has ended or is silent for `limit` seconds."""

    def __init__(self, limit: float):
        self._limit = limit
        self._heard: dict[str, tuple[str, float]] = {}  # process -> its last count, and when
        self._answered = time.monotonic()
        for work in (self._exchange, self._wait_for_answers):
            threading.Thread(target=work, daemon=True).start()

    def _exchange(self) -> None:
        """Says that this process is alive, and looks whether the others are."""
        own, store, count = jax.process_index(), _store(), 0
        while not _leaving.wait(HEARTBEAT_S):
            count += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone or busy
                store.key_value_set(f"scav/alive/{own}", str(count), allow_overwrite=True)
                self._look(dict(store.key_value_dir_get("scav/alive")), _ended(store))
                self._answered = time.monotonic()

    def _look(self, alive: dict[str, str], ended: dict[str, str]) -> None:
        if ended:
            time.sleep(LEAVING_S)  # an error that all share, all report themselves
            _end_unless_leaving(_ended_words(ended), together=True)
        now = time.monotonic()
        for key, count in alive.items():
            if key not in self._heard or self._heard[key][0] != count:
                self._heard[key] = (count, now)
            elif now - self._heard[key][1] > self._limit:
                which = key.rsplit("/", 1)[1]
                _end_unless_leaving(
                    _lost_words(f"process {which} was silent for {self._limit:g} s")
                )

    def _wait_for_answers(self) -> None:
        """Apart from `_exchange`, which may itself wait for process 0."""
        while not _leaving.wait(HEARTBEAT_S):
            if time.monotonic() - self._answered > self._limit + LEAVING_S + HEARTBEAT_S:
                words = f"process 0 (the coordinator) was silent for {self._limit:g} s"
                _end_unless_leaving(_lost_words(words))


def _end_unless_leaving(words: str, *, together: bool = False) -> None:
    if not _leaving.is_set():
        _end(EXIT_LOST, words, together=together)


def _lost(error: Exception) -> str | None:
    """The words for an error that comes from the loss of another process, or None."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError | OSError) or not _COLLECTIVE_FAILED.search(text):
        return None
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        begin = time.monotonic()
        while time.monotonic() - begin < 2 * HEARTBEAT_S:
            ended = _ended(_store())
            if ended:
                return _ended_words(ended)
            time.sleep(0.1)
    said = _COLLECTIVE_FAILED.search(text)
    return _lost_words(f"an exchange with it failed ({text[said.start() :].splitlines()[0][:150]})")


def _ended_words(ended: dict[str, str]) -> str:
    return _lost_words("; ".join(f"process {index} ended: {why}" for index, why in ended.items()))


def _lost_words(what: str) -> str:
    own = f"process {jax.process_index()} of {jax.process_count()}"
    return (
        f"error: {own}: another process was lost: {what}; look at its log. What was saved is kept: "
        "the same command in all processes resumes"
    )


def _leave_last_words() -> None:
    """Has a word said should this process die without any.

    JAX aborts a process whose coordinator is gone, at once and from C++. So a shell waits at a
    pipe: if that closes and nobody has said goodbye, it speaks.
    """
    words = (
        f"error: process {jax.process_index()} of {jax.process_count()} ended without a word: it "
        "was killed (out of memory?), or another process was lost, as the lines above may say. "
        "What was saved is kept: the same command in all processes resumes"
    )
    shell = subprocess.Popen(
        ["sh", "-c", "read -r goodbye || printf '\\n%s\\n' \"$0\" >&2", words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the group is for us
    )
    atexit.register(_goodbye, shell)
    _shell.append(shell)


def _goodbye(shell: subprocess.Popen) -> None:
    if shell.returncode is None:
        with contextlib.suppress(OSError):
            shell.communicate(b"goodbye\n")


def _announce(why: str) -> None:
    """Tells the other processes that this one ends."""
    _leaving.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _store().key_value_set(f"scav/ended/{jax.process_index()}", why, allow_overwrite=True)


def _ended(store) -> dict[str, str]:
    """Process index -> why it ended."""
    return {key.rsplit("/", 1)[1]: why for key, why in store.key_value_dir_get("scav/ended")}


def _take_leave() -> None:
    """Lets the coordinator end last: JAX aborts a process whose coordinator is gone."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        own, store, begin = jax.process_index(), _store(), time.monotonic()
        if not _ended(store):  # one was killed, and will not take its leave
            return
        store.key_value_set(f"scav/left/{own}", "", allow_overwrite=True)
        while own == 0 and time.monotonic() - begin < FAREWELL_S:
            if len(store.key_value_dir_get("scav/left")) == jax.process_count():
                break
            time.sleep(0.1)


def _store() -> Any:
    """JAX's key-value store; JAX documents no other way to it, orbax takes this one too.

    No import: while another thread imports tensorflow_datasets, that could yield a placeholder.
    """
    return jax._src.distributed.global_state.client


def _key(kind: str) -> str:
    """A key that is the same in all processes, for they agree on the same things in order."""
    _numbers[kind] = _numbers.get(kind, 0) + 1
    return f"scav/{kind}/{_numbers[kind]}"


def _after(seconds: float, act: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer


def _end(code: int, words: str = "", *, together: bool = False) -> NoReturn:
    """Ends the process at once: an orderly end would wait for the other processes.

    Args: what the program exits with; last words; whether all of them are ending.
    """
    if words:
        print(f"\n{words}", file=sys.stderr)  # a progress bar may stand on the line
    for shell in _shell:
        _goodbye(shell)
    sys.stdout.flush()
    sys.stderr.flush()
    if together:
        _take_leave()
    os._exit(code)
