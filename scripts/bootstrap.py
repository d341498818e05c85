"""Set-up for scripts/demo and scripts/test: .venv with the pinned packages and this project.

Standard library only, and nothing that Python 3.6 cannot read: an old `python3` must get as far as
the one line that says which Python is needed.

The pins are in constraints.txt: versions only, for every supported Python. To renew them:

    uv pip compile --universal --no-header --no-annotate --upgrade --python-version 3.11 \
        --extra dev --extra notebook --extra ray --extra onnx --extra cuda12 --extra cuda13 \
        --extra tpu pyproject.toml -o constraints.txt
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST, NEWEST = (3, 11), (3, 14)  # as `requires-python` says
SUPPORTED = "Python 3.11 to 3.14"
CANDIDATES = ("python3.12", "python3.13", "python3.14", "python3.11", "python3", "python")
EXIT_SYSTEM = 3  # as scav_jax.base.errors: the machine refused
EXIT_INTERRUPTED = 130

# What a run that was killed leaves behind in .venv, for the next run to read.
MAKING, INSTALLING = "making", "installing"


def say(text):
    print(f"[set-up] {text}", file=sys.stderr, flush=True)


def stop(text):
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(EXIT_SYSTEM)


def version_of(python):
    """(major, minor, micro) of an interpreter, or None where it does not run."""
    code = "import sys; print('%d %d %d' % sys.version_info[:3])"
    try:
        found = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return tuple(int(part) for part in found.stdout.split()) or None
    except (OSError, ValueError):
        return None


def use_supported_python(version=None, which=shutil.which):
    """Goes on under a supported Python; where there is none, one line and the end.

    Args:
      version: (major, minor, ...) of the Python that runs now.
      which: finds a command on PATH.
    """
    version = tuple(version or sys.version_info)
    if OLDEST <= version[:2] <= NEWEST:
        return
    for name in CANDIDATES:
        python = which(name)
        if python and OLDEST <= (version_of(python) or (0,))[:2] <= NEWEST:
            os.execv(python, [python, *sys.argv])
    stop(
        f"{SUPPORTED} is needed, this is {'.'.join(str(part) for part in version[:3])} "
        f"({sys.executable}) and none of them is on PATH; install Python 3.12 and run the same "
        "command again"
    )


class Environment:
    """The virtual environment in `root`/.venv."""

    def __init__(self, root=ROOT):
        self.root = root
        self.folder = os.path.join(root, ".venv")
        self.python = os.path.join(self.folder, "bin", "python")
        self.stamp = os.path.join(self.folder, "scav_jax-installed.json")
        self.unfinished = os.path.join(self.folder, "scav_jax-unfinished")

    def key(self, version):
        """A digest of everything that decides what is installed, but for the extras."""
        digest = hashlib.sha256(repr((self.root, version)).encode())
        for name in ("pyproject.toml", "constraints.txt"):
            with open(os.path.join(self.root, name), "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
        return digest.hexdigest()

    def installed(self, key):
        """The extras that are installed under this key, or None where an installation is due."""
        try:
            with open(self.stamp) as file:
                stamp = json.load(file)
            return set(stamp["extras"]) if stamp["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_stamp(self, key, extras):
        partial = self.stamp + ".partial"
        with open(partial, "w") as file:
            json.dump({"key": key, "extras": sorted(extras)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.stamp)

    def interrupted_while(self):
        """MAKING, INSTALLING or None: what a killed run was doing."""
        try:
            with open(self.unfinished) as file:
                return file.read().strip()
        except OSError:
            return None

    def clear(self):
        """Removes what a killed run had made, the mark of it last of all."""
        for entry in os.scandir(self.folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.path != self.unfinished:
                os.remove(entry.path)

    def begin(self, work):
        os.makedirs(self.folder, exist_ok=True)
        with open(self.unfinished, "w") as file:
            file.write(work)

    def end(self):
        os.remove(self.unfinished)


@contextlib.contextmanager
def one_at_a_time(root):
    """Two set-ups at once wait for each other (where the file system has locks)."""
    folder = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another set-up of this folder is running: waiting for it")
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def make(environment):
    """The environment with a working Python in it, made where it is missing or half made."""
    half_made = environment.interrupted_while() == MAKING
    if not half_made and os.path.exists(environment.python):
        version = version_of(environment.python)
        if version is None or not OLDEST <= version[:2] <= NEWEST:
            stop(
                f"{environment.folder} should hold {SUPPORTED}, "
                f"its Python {'is ' + '.'.join(map(str, version)) if version else 'does not run'}; "
                "remove the folder and run the same command again"
            )
        return version
    say(f"making .venv with Python {'.'.join(map(str, sys.version_info[:3]))}")
    if half_made:
        environment.clear()
    environment.begin(MAKING)
    if subprocess.call([sys.executable, "-m", "venv", environment.folder]) != 0:
        stop(
            "this Python cannot make virtual environments (its reason stands above); install its "
            "venv module, for example the package python3-venv, and run the same command again"
        )
    environment.end()
    return version_of(environment.python)


def installers(environment, again):
    """(name, command) of what installs packages into .venv: uv, and pip where uv does not do."""
    own_uv = os.path.join(environment.folder, "bin", "uv")
    pip = [environment.python, "-m", "pip"]
    if not runs([own_uv]) and runs(pip):
        say("installing uv, which installs the rest")
        anew = ["--ignore-installed"] if again else []
        command = ["install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
        subprocess.call(pip + command + anew + ["uv"], cwd=environment.root)
    for uv in (own_uv, shutil.which("uv")):
        if uv and runs([uv]):
            yield "uv", [uv, "pip", "install", "--python", environment.python]
            break
    if not runs(pip):
        subprocess.call([environment.python, "-m", "ensurepip"])
    yield "pip", [*pip, "install", "--disable-pip-version-check"]


def runs(command):
    """Whether `command --version` runs."""
    try:
        nothing = subprocess.DEVNULL
        return subprocess.call([*command, "--version"], stdout=nothing, stderr=nothing) == 0
    except OSError:
        return False


def install(environment, extras):
    """The project and its pinned packages into .venv."""
    again = environment.interrupted_while() == INSTALLING
    if again:
        say("the last installation was interrupted: installing every package again")
    environment.begin(INSTALLING)
    project = "." + ("[" + ",".join(sorted(extras)) + "]" if extras else "")
    environ = dict(os.environ, UV_PYTHON_DOWNLOADS="never")
    for name, command in installers(environment, again):
        # A package that was half written must not count as installed.
        anew = {"uv": ["--reinstall"], "pip": ["--ignore-installed"]}[name] if again else []
        say(f"installing the packages pinned in constraints.txt with {name} (about 1 GB on disk)")
        command = command + anew + ["-c", "constraints.txt", "-e", project]
        if subprocess.call(command, cwd=environment.root, env=environ) == 0:
            environment.end()
            return
        say(f"{name} could not install them (its reason stands above)")
        again = True
    stop(
        "the packages should have been installed, no installer managed it (the reasons stand "
        "above); see that the package index can be reached and run the same command again"
    )


def ensure(extras=(), root=ROOT):
    """Sees to .venv: seconds of work once, nothing the next time.

    Args:
      extras: the project's optional dependencies that are needed, as in `.[test]`.
      root: the folder of pyproject.toml.

    Returns:
      The path of .venv's Python, with the project and its pinned packages installed.
    """
    environment = Environment(root)
    began = time.monotonic()
    with one_at_a_time(root):
        version = make(environment)
        key = environment.key(version)
        installed = environment.installed(key)
        if installed is None or not set(extras) <= installed or environment.interrupted_while():
            extras = set(extras) | (installed or set())
            install(environment, extras)
            environment.write_stamp(key, extras)
            say(f"done in {time.monotonic() - began:.0f} s; the next run starts at once")
    return environment.python


def run(main):
    """Runs a script's `main` and exits with its code; Ctrl-C is one line."""
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
