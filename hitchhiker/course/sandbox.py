"""Run a student's notebook in a process of its own, and ask it for values.

The process has an empty folder, a bare environment, limits on time, memory, file size and number of processes, and (with
bubblewrap) a file system in which nothing but Python and system libraries can be seen, and no network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hitchhiker.course import values

PACKAGE = Path(__file__).resolve().parents[1]
MOST_PROCESSES = 8
START = 120.0  # seconds for the imports, on a slow and busy machine


class Stopped(Exception):
    """The student's process ended or was ended; the message says why, in words for the student."""


class Failed(Exception):
    """The student's code raised: ``.error`` has type, message, line and cell, ``.text`` what it printed before."""

    def __init__(self, error: dict[str, Any], text: str = ""):
        self.error = {name: error.get(name) for name in ("type", "message", "line", "cell")}
        self.text = text
        super().__init__(f"{error.get('type')}: {error.get('message')}"[:700])


@functools.cache
def readable() -> list[str]:
    """Folders that a notebook may read: Python, its libraries, this package and its stored results."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    paths |= {str(PACKAGE), str(PACKAGE.parent / "data" / "results"), str(PACKAGE.parent / "share" / "hitchhiker")}
    with contextlib.suppress(ImportError):
        import matplotlib

        paths.add(matplotlib.get_cachedir())
    system = ["/usr/lib", "/usr/lib64", "/usr/share", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    system += ["/etc/localtime", "/etc/mime.types", "/etc/fonts", "/System/Library", "/Library", "/opt/homebrew"]
    system += [
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/self/status",
        "/proc/self/stat",
        "/proc/self/maps",
    ]
    system += ["/sys/devices/system", "/sys/fs/cgroup", "/dev/null", "/dev/urandom", "/dev/random"]
    paths |= {str(Path(p).resolve()) for p in paths}
    return sorted(p for p in {*paths, *system} if p not in {"/", str(Path.home()), ""})


@functools.cache
def bubblewrap() -> str | None:
    """The path of a ``bwrap`` that works here, or None."""
    path = shutil.which("bwrap")
    if path is None or sys.platform != "linux":
        return None
    test = [path, "--ro-bind", "/", "/", "--unshare-all", "--proc", "/proc", "--dev", "/dev", "true"]
    try:
        return path if subprocess.run(test, capture_output=True, timeout=20).returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def isolation() -> str:
    """Which walls stand around a notebook on this machine, in one sentence."""
    if bubblewrap():
        return "bubblewrap (no network, no other files) and Python's audit hook"
    return "Python's audit hook only: install bubblewrap (Linux) to keep determined attackers out too"


def warm() -> None:
    """Fill the caches that notebooks may read and not write: compiled samplers, the list of fonts."""
    import torch

    import hitchhiker

    for dtype in (torch.float32, torch.float64):
        for law in (hitchhiker.EATPoisson, hitchhiker.GSMPoisson):
            law(rate=torch.ones(2, dtype=dtype, requires_grad=True), temperature=0.1).rsample((2,)).sum().backward()
    with contextlib.suppress(ImportError):
        import matplotlib.font_manager  # noqa: F401


class Process:
    """One student process.  ``ask`` sends a request and waits for its answer, within limits."""

    def __init__(self, limits: dict[str, float]):
        if os.name != "posix":
            raise ValueError("grading needs Linux or macOS (on Windows: use WSL or Colab)")
        self.limits, self.number, self.ended = limits, 0, ""
        self.folder = Path(tempfile.mkdtemp(prefix="notebook-")).resolve()
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.folder), "TMPDIR": str(self.folder), "LANG": "C.UTF-8",
            "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        with contextlib.suppress(ImportError):
            import matplotlib

            environment["MPLCONFIGDIR"] = matplotlib.get_cachedir()
        start = (
            f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from hitchhiker.course.child import main; main()"
        )
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        self.process = subprocess.Popen(
            [*self._walls(), sys.executable, "-I", "-B", "-c", start],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            cwd=self.folder, env=environment, start_new_session=True, bufsize=0,
        )  # fmt: skip
        settings = {
            "readable": readable(),
            "writable": str(self.folder),
            "memory": int(limits["memory"] * 1e9),
            "file": 50_000_000,
            "cpu": int(limits["total"] + START),
        }
        try:
            self._send(settings)
            self._receive(START, None)
        except Stopped as error:
            self.errors.seek(0)
            said = self.errors.read()[-500:].decode(errors="replace")
            self.close()
            raise RuntimeError(f"the process for notebooks did not start: {error}; {said}") from error

    def _walls(self) -> list[str]:
        bwrap = bubblewrap()
        if bwrap is None:
            return []
        walls = [bwrap, "--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for path in (
            "/usr",
            "/bin",
            "/lib",
            "/lib64",
            "/etc/ld.so.cache",
            "/etc/localtime",
            "/etc/fonts",
            "/sys/devices",
        ):
            if os.path.islink(path):
                walls += ["--symlink", os.readlink(path), path]
            else:
                walls += ["--ro-bind-try", path, path]
        for path in readable():
            if not path.startswith(("/usr/", "/lib", "/proc", "/sys", "/dev", "/etc")):
                walls += ["--ro-bind-try", path, path]
        return [*walls, "--bind", str(self.folder), str(self.folder), "--chdir", str(self.folder)]

    def ask(self, seconds: float, **request: Any) -> tuple[Any, str]:
        """(value as JSON, what was printed).  Raises :class:`Failed` or :class:`Stopped`."""
        if self.ended:
            raise Stopped(self.ended)
        self.number += 1
        self._send({**request, "id": self.number})
        reply = self._receive(seconds, self.number)
        text = str(reply.get("text", ""))[: 2 * 20_000]
        error = reply.get("error")
        if isinstance(error, dict):
            raise Failed(error, text)
        return reply.get("value"), text

    def _send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(struct.pack("<I", len(data)) + data)
        except OSError:
            self._end(self._last_words())

    def _receive(self, seconds: float, number: int | None) -> dict[str, Any]:
        head = self._read(4, deadline := [time.monotonic() + seconds, seconds])
        size = struct.unpack("<I", head)[0]
        if size > values.MAX_BYTES:
            self._end("its code wrote to the grader's channel")
        try:
            reply = json.loads(self._read(size, deadline))
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or reply.get("id") != (number or 0):
            self._end("its code wrote to the grader's channel")
        assert isinstance(reply, dict)
        if deadline[0] == 0:  # it was interrupted, and answered that
            reply = {"error": {"type": "Timeout", "message": f"stopped after {seconds:g} seconds"}} | {
                "text": reply.get("text", "")
            }
        return reply

    def _read(self, size: int, deadline: list[float]) -> bytes:
        """Exactly ``size`` bytes.  After the deadline: an interrupt first, and if that does not help, the end."""
        assert self.process.stdout is not None
        chunks, grace = bytearray(), 0.0
        while len(chunks) < size:
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                data = os.read(self.process.stdout.fileno(), min(size - len(chunks), 1 << 20))
                if not data:
                    self._end(self._last_words())
                chunks += data
                continue
            self._watch()
            now = time.monotonic()
            if deadline[0] and now > deadline[0]:
                deadline[0], grace = 0, now + 3
                self._signal(signal.SIGINT)
            elif grace and now > grace:
                self._end(f"it was stopped after {deadline[1]:g} seconds")
        return bytes(chunks)

    def _tree(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []

    def _watch(self) -> None:
        tree = self._tree()
        used = 0
        for process in tree:
            with contextlib.suppress(psutil.Error):
                used += process.memory_info().rss
        if used > self.limits["memory"] * 1e9:
            self._end(f"it used more than {self.limits['memory']:g} GB of memory")
        if len(tree) > MOST_PROCESSES:
            self._end("it started too many processes")

    def _signal(self, number: int) -> None:
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                if "bwrap" not in process.name():
                    process.send_signal(number)

    def _last_words(self) -> str:
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed the grader's channel"
        number = -code if code < 0 else code - 128 if code > 128 else 0
        if number:
            with contextlib.suppress(ValueError):
                return f"its process crashed ({signal.Signals(number).name})"
        return f"it ended its own process (exit code {code})"

    def _end(self, why: str) -> None:
        self.ended = why
        self.close()
        raise Stopped(why)

    def close(self) -> None:
        """End the process and all that it started, and remove its folder."""
        self.ended = self.ended or "it has ended"
        tree = self._tree()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
