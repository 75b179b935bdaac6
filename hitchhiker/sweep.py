"""A grid of runs that can be stopped at any moment and goes on after the last finished group.

A sweep is a set of named *groups*, each a JSON-able mapping of settings, and a function ``measure`` that turns one
group into rows.  In its folder it keeps

    rows/NAME.json    the rows of a finished group, with its settings, date, device and time
    work/NAME/        for an unfinished group to keep its own files in (checkpoints); ``measure`` is told where
    SWEEP.json        all rows so far, with where they come from: the file that is stored and shown

Groups run one after the other, or in ``workers`` processes, or on a Dask cluster.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hitchhiker import _files, reproduce

Rows = list[dict[str, Any]]
Result = dict[str, Any]
Measure = Callable[[dict[str, Any], Path], Rows]


class SweepFailed(RuntimeError):
    """Some groups failed; the others are finished and kept.  ``errors`` maps a group's name to its error."""

    def __init__(self, errors: dict[str, BaseException], total: int):
        self.errors = errors
        name, error = next(iter(errors.items()))
        super().__init__(
            f"{len(errors)} of {total} groups failed, the others are kept; the first was {name}: "
            f"{type(error).__name__}: {error}"
        )


def run(
    groups: Mapping[str, dict[str, Any]],
    measure: Measure,
    out: str | Path,
    *,
    name: str = "sweep",
    command: str,
    seed: int = 0,
    only: Collection[str] | None = None,
    workers: int = 1,
    cluster: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Run the groups that are not finished yet and collect all rows in ``out/name.json``.

    Parameters
    ----------
    groups : name -> settings (JSON-able).  Names are file names: letters, digits and ``. _ = + -``.
    measure : ``(settings, folder) -> rows``; ``folder`` exists and is the group's own, so that it can resume there.
        Rows are JSON-able mappings without NaN; each gets the entry ``group``.  With workers or a cluster it must be a
        function of a module, and ``out`` a folder that all of them see.
    out : folder of the sweep; made if it is missing.
    name, command, seed : of the result, for its provenance.
    only : names of the groups to run now (default: all); the others stay as they are.
    workers : processes on this machine, ``>= 1``; 1 runs in this one.
    cluster : address of a Dask scheduler (``tcp://host:8786``) to run the groups on instead.
    say : called with a line after each group.

    Returns ``{"sweep", "groups", "missing", "provenance", "rows"}``; ``missing`` names the groups not finished yet.

    Raises ``ValueError`` for a bad name, an unknown group in ``only``, or a folder that holds other settings under the
    same name, before any work; :class:`SweepFailed` after all other groups have run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = run({"two": {"x": 2}}, lambda s, f: [{"square": s["x"] ** 2}], folder, command="none")
    >>> result["rows"]
    [{'group': 'two', 'square': 4}]
    """
    out = Path(out)
    chosen = _check(groups, out, name, only, workers)
    _files.make_folder("out", out / "rows")
    todo = [group for group in chosen if not _rows_file(out, group).exists()]
    done = sum(_rows_file(out, group).exists() for group in groups)
    errors: dict[str, BaseException] = {}
    with _executor(workers, cluster) as pool:
        pending = {pool.submit(_run_group, measure, group, groups[group], str(out)): group for group in todo}
        try:
            for future in _completed(pool, pending):
                group = pending[future]
                error = future.exception()
                if isinstance(error, Exception):
                    errors[group] = error
                    outcome = f"failed: {type(error).__name__}: {error}"
                else:
                    outcome = f"{future.result():.0f} s"  # raises KeyboardInterrupt of a worker
                    done += 1
                    collect(groups, out, name=name, command=command, seed=seed)
                if say is not None:
                    say(f"{name}: {done} of {len(groups)} groups done ({group}, {outcome})")
        except BaseException:
            for future in pending:
                future.cancel()
            raise
    result = collect(groups, out, name=name, command=command, seed=seed)
    if errors:
        raise SweepFailed(errors, len(todo))
    return result


def collect(
    groups: Mapping[str, dict[str, Any]], out: str | Path, *, name: str = "sweep", command: str, seed: int = 0
) -> Result:
    """All rows of the finished groups in ``out``, written to ``out/name.json`` and returned (see :func:`run`)."""
    out = Path(out)
    rows: Rows = []
    spent, dates, devices, missing = 0.0, [], set(), []
    for group in groups:
        path = _rows_file(out, group)
        if not path.exists():
            missing.append(group)
            continue
        kept = _files.read_json(path, ("rows", "seconds", "date", "device"))
        rows += [{"group": group, **row} for row in kept["rows"]]
        spent += kept["seconds"]
        dates.append(kept["date"])
        devices.add(kept["device"])
    origin = reproduce.provenance(command, seed, spent)
    if dates:
        origin |= {"date": max(dates), "device": ", ".join(sorted(devices))}
    result = {"sweep": name, "groups": dict(groups), "missing": missing, "provenance": origin, "rows": rows}
    reproduce._write_result(out / f"{name}.json", result)
    return result


def stored(name: str) -> Result:
    """A result that came with the package, by its path under ``data/results`` without ``.json``: ``"pvae/laptop"``.

    Raises ``FileNotFoundError`` naming the file.
    """
    path = reproduce.locate(f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))


# --- one group


def _run_group(measure: Measure, group: str, settings: dict[str, Any], out: str) -> float:
    """Measure one group and write its rows; returns the seconds that it took, earlier tries included."""
    folder = Path(out) / "work" / group
    folder.mkdir(parents=True, exist_ok=True)
    clock = folder / "seconds.json"
    before = _seconds(clock)
    started = time.monotonic()
    try:
        rows = measure(settings, folder)
    except BaseException:
        with contextlib.suppress(OSError):
            _files.write_json(clock, before + time.monotonic() - started)
        raise
    seconds = before + time.monotonic() - started
    origin = reproduce.provenance("", 0, seconds)
    device = next((str(row["device"]) for row in rows if "device" in row), origin["device"])
    kept = {
        "settings": settings, "seconds": round(seconds, 1), "device": device,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": origin["versions"], "rows": rows,
    }  # fmt: skip
    _files.write_json(_rows_file(Path(out), group), kept)
    return seconds


def _seconds(clock: Path) -> float:
    """What earlier tries took; 0 when that cannot be read."""
    try:
        seconds = float(json.loads(clock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0


def _rows_file(out: Path, group: str) -> Path:
    return out / "rows" / f"{group}.json"


def _check(
    groups: Mapping[str, dict], out: Path, name: str, only: Collection[str] | None, workers: int
) -> Collection[str]:
    for group in (*groups, name):
        if not re.fullmatch(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*", group):
            raise ValueError(f"groups must have names of letters, digits and . _ = + -, got {group!r}")
    if not (isinstance(workers, int) and workers >= 1):
        raise ValueError(f"workers must be a whole number >= 1, got {workers}")
    if only is not None and (unknown := sorted(set(only) - set(groups))):
        raise ValueError(f"only must name groups among {', '.join(groups)}, got {', '.join(unknown)}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {str(out)!r}")
    for group, settings in groups.items():
        path = _rows_file(out, group)
        if path.exists():
            kept = _files.read_json(path, ("settings",))["settings"]
            if kept != json.loads(json.dumps(settings)):
                different = sorted(k for k in {*kept, *settings} if kept.get(k) != settings.get(k))
                raise ValueError(
                    f"out must be the folder of the same sweep: in {str(out)!r} the group {group} has other "
                    f"{', '.join(different)}"
                )
    return [group for group in groups if only is None or group in only]


# --- where groups run


class _Here(concurrent.futures.Executor):
    """Runs each task when its result is waited for, in this process: Ctrl-C and errors act as they always do."""

    def __init__(self) -> None:
        self._waiting: dict[concurrent.futures.Future, Callable[[], Any]] = {}

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._waiting[future] = lambda: fn(*args, **kwargs)
        return future

    def completed(self) -> Iterator[concurrent.futures.Future]:
        for future, work in self._waiting.items():
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            yield future


def _completed(pool: concurrent.futures.Executor, pending: Mapping[concurrent.futures.Future, str]) -> Iterator:
    return pool.completed() if isinstance(pool, _Here) else concurrent.futures.as_completed(pending)


@contextlib.contextmanager
def _executor(workers: int, cluster: str | None) -> Iterator[concurrent.futures.Executor]:
    if cluster is not None:
        try:
            from distributed import Client  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ImportError("a cluster needs Dask: pip install distributed") from error
        with Client(cluster) as client:
            yield client.get_executor(pure=False)
    elif workers == 1:
        yield _Here()
    else:
        import multiprocessing

        # a fresh process each, for threads of torch do not survive a fork
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
            yield pool
