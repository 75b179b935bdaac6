"""The process in which a student's notebook runs: it runs cells, and answers with values; it never sees a test.

Started by :mod:`hitchhiker.course.sandbox`.  After the trusted imports an audit hook refuses what the student's code has no
business with: files elsewhere, the network, other processes, C libraries.  That stops ordinary Python; it is no wall
against someone who attacks the interpreter itself.  The wall is bubblewrap, where it is installed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import linecache
import os
import random
import resource
import signal
import struct
import sys
import threading
import time
import types
from typing import Any

from hitchhiker.course import values

MAX_TEXT = 20_000


def main() -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    settings = read(requests)
    import numpy as np
    import torch

    torch.set_num_threads(1)
    _quiet_numba()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    _limit(resource.RLIMIT_CPU, settings["cpu"])
    _limit(resource.RLIMIT_FSIZE, settings["file"])
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_DATA, settings["memory"])
    threading.Thread(target=follow_parent, args=(os.getppid(),), daemon=True).start()
    student = Student(np, torch)
    signal.signal(signal.SIGINT, student.interrupt)
    _guard(settings["readable"], settings["writable"])
    write(replies, {"id": 0, "value": None})
    while True:
        try:
            request = read(requests)
        except EOFError:
            os._exit(0)
        try:
            reply = student.answer(request)
        except BaseException as error:
            reply = {"error": describe(error), "text": ""}
        try:
            write(replies, {**reply, "id": request["id"]})
        except ValueError as error:
            write(replies, {"error": describe(error), "text": "", "id": request["id"]})


def read(stream: Any) -> Any:
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    return json.loads(stream.read(struct.unpack("<I", head)[0]))


def write(stream: Any, message: Any) -> None:
    data = json.dumps(message).encode()
    if len(data) > values.MAX_BYTES:
        raise ValueError(f"the answer is too large to hand over: {len(data) / 1e6:.0f} MB")
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def describe(error: BaseException) -> dict[str, Any]:
    """Type, message and, where the student's own code failed, the line."""
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)[:600]
    except BaseException:
        message = ""
    trace, line, cell = error.__traceback__, None, None
    while trace:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith("<cell "):
            line, cell = trace.tb_lineno, name.strip("<>")
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line, cell = error.lineno, str(error.filename).strip("<>")
    return {"type": type(error).__name__[:80], "message": message, "line": line, "cell": cell}


class Student:
    """The notebook's namespace, and the objects of it that the grader holds by number."""

    def __init__(self, np: Any, torch: Any):
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        shell = Shell(self.names)
        self.names |= {"get_ipython": lambda: shell, "display": lambda *things, **options: print(*things)}
        sys.modules["__main__"] = self.module
        self.held: list[Any] = []
        self.running = False
        self.seeders = (random.seed, np.random.seed, torch.manual_seed)

    def interrupt(self, *_: Any) -> None:
        if self.running:
            raise KeyboardInterrupt

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        sys.stdout = sys.stderr = text = Text()  # type: ignore[assignment]
        self.running = True
        try:
            value = getattr(self, "do_" + request["do"])(request)
            return {"value": values.encode(value, self.refer), "text": text.kept()}
        except BaseException as error:
            return {"error": describe(error), "text": text.kept()}
        finally:
            self.running = False

    def do_run(self, request: dict[str, Any]) -> None:
        name, source = f"<{request['name']}>", request["source"]
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        tree = ast.parse(source, name)
        shown: list[ast.stmt] = []  # as a notebook, show what the last line is worth
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
            shown.append(tree.body.pop())
        exec(compile(tree, name, "exec", dont_inherit=True), self.names)
        exec(compile(ast.Interactive(shown), name, "single", dont_inherit=True), self.names)

    def do_get(self, request: dict[str, Any]) -> Any:
        return self.names[request["name"]]

    def do_call(self, request: dict[str, Any]) -> Any:
        for seed in self.seeders:
            seed(request["seed"])
        function = self.held[request["ref"]]
        args, kwargs = (values.decode(part, self.resolve) for part in request["arguments"])
        return function(*args, **kwargs)

    def do_attribute(self, request: dict[str, Any]) -> Any:
        return getattr(self.held[request["ref"]], request["name"])

    def do_at(self, request: dict[str, Any]) -> float:
        return float(values.at(self.held[request["ref"]], **values.decode(request["values"], self.resolve)))

    def refer(self, value: Any) -> dict[str, Any]:
        self.held.append(value)
        kind = type(value)
        symbols = getattr(value, "free_symbols", ()) if kind.__module__.startswith("sympy") else None
        return {
            "ref": len(self.held) - 1,
            "type": kind.__name__,
            "symbols": None if symbols is None else sorted(str(s) for s in symbols),
        }

    def resolve(self, tree: dict[str, Any]) -> Any:
        return values.Code(tree["code"]) if "code" in tree else self.held[tree["ref"]]


class Text:
    """What a cell prints: the beginning of it."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0

    def write(self, text: str) -> int:
        if self.size < MAX_TEXT:
            self.parts.append(str(text)[: MAX_TEXT - self.size])
        self.size += len(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False

    def kept(self) -> str:
        more = self.size - MAX_TEXT
        return "".join(self.parts) + (f"\n… and {more} more characters" if more > 0 else "")


class Shell:
    """In place of IPython's shell: times and captures run their code, everything else says that it does not run here."""

    def __init__(self, names: dict[str, Any]):
        self.names = names

    def run_cell_magic(self, name: str, line: str, body: str) -> None:
        if name in {"time", "timeit", "capture"}:
            exec(compile(body, "<cell magic>", "exec"), self.names)
        else:
            self.skip(f"%%{name}")

    def run_line_magic(self, name: str, line: str, **_: Any) -> None:
        if name in {"time", "timeit"} and line:
            exec(compile(line, "<magic>", "exec"), self.names)
        else:
            self.skip(f"%{name}")

    def system(self, command: str) -> None:
        self.skip("!")

    def getoutput(self, command: str) -> list[str]:
        self.skip("!")
        return []

    @staticmethod
    def skip(what: str) -> None:
        print(f"the grader does not run {what} lines")


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses some
        resource.setrlimit(kind, (most, most))


def follow_parent(parent: int) -> None:
    """End when the grader has ended, however it did."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _quiet_numba() -> None:
    """Compiled samplers: read the cache that lies beside the package, and do not mind that it cannot be written."""
    try:
        caching: Any = importlib.import_module("numba.core.caching")
    except ImportError:
        return
    save = caching.Cache.save_overload

    def try_to_save(self: Any, *args: Any) -> None:
        with contextlib.suppress(OSError):
            save(self, *args)

    caching.Cache.save_overload = try_to_save
    caching._CacheLocator.ensure_cache_path = lambda self: None
    import hitchhiker.kernels.compiled  # noqa: F401


_FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "pty.",
    "os.symlink", "os.link", "os.chdir", "os.chroot", "resource.", "sqlite3.", "gc.", "ctypes.call",
    "ctypes.string_at", "ctypes.PyObj",
    "ftplib.", "http.client.", "urllib.", "smtplib.",
)  # fmt: skip
_READS = ("os.listdir", "os.scandir", "glob.glob")
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime")
_SYMBOLS = ("LLVMPY_", "Py", "_Py", "numba_", "NRT_")


def _guard(readable: list[str], writable: str) -> None:
    subprocess: Any = importlib.import_module("subprocess")
    bare: Any = importlib.import_module("_posixsubprocess")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("the grader does not let a notebook start other programs")

    subprocess._fork_exec = bare.fork_exec = refuse  # it has no audit event
    sys.addaudithook(_hook(tuple(readable), writable))


def _hook(readable: tuple[str, ...], writable: str) -> Any:
    fspath, forbidden, reads, writes, symbols = os.fspath, _FORBIDDEN, _READS, _WRITES, _SYMBOLS
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    denied, text, number = PermissionError, str, int

    def inside(path: Any, folders: tuple[str, ...]) -> bool:
        if path is None or type(path) is number:
            return True
        path = path if type(path) in (text, bytes) else fspath(path)
        path = path if type(path) is text else bytes.decode(path, "utf-8", "replace")
        parts: list[str] = []
        if path[:1] != "/":
            if ".." in path:
                return False
            path = f"{writable}/{path}"
        for part in path.split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts = [*parts, part]
        path = "/" + "/".join(parts)
        return any(path == folder or path.startswith(folder + "/") for folder in folders)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            changing = (type(mode) is text and any(c in mode for c in "wax+")) or (
                type(flags) is number and flags & writing
            )
            if inside(path, (writable, "/dev/null") if changing else (writable, *readable)):
                return
            raise denied(f"the grader does not let a notebook open {path!r}")
        if event in reads:
            if not inside(args[0] if args else None, (writable, *readable)):
                raise denied(f"the grader does not let a notebook look into {args[0]!r}")
        elif event in writes:
            if not all(inside(path, (writable,)) for path in args if type(path) in (text, bytes)):
                raise denied(f"the grader does not let a notebook change {args[0]!r}")
        elif event == "ctypes.dlsym":  # numba's compiler looks its functions up as it needs them
            if not text(args[1]).startswith(symbols):
                raise denied("the grader does not let a notebook call C libraries")
        elif event == "ctypes.dlopen":
            if type(args[0]) is not text or not inside(args[0], readable):
                raise denied("the grader does not let a notebook load C libraries")
        elif event.startswith(forbidden):
            raise denied(f"the grader does not let a notebook use {event}")

    return hook


if __name__ == "__main__":
    main()
