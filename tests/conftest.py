"""What every test shares: shape checks on the module's signatures, one seed per test, one thread per worker."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.manager import KernelManager
from notebooks import private_sockets

# Shapes and dtypes in signatures are checked while tests run. HITCHHIKER_SHAPES=0 turns that off (the wrappers cost
# time, and torch.compile has to look through them).
if os.environ.get("HITCHHIKER_SHAPES", "1") != "0":
    import shape_checks

    shape_checks.install()

import torch

# two workers start kernels at the same time
nbval.kernel.KernelManager = lambda **options: KernelManager(**options, **private_sockets())

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vary-seeds", type=int, default=0, metavar="N",
        help="shift every test's seed by N; a statistical test that then fails at six sigma is a bug",
    )  # fmt: skip


def pytest_report_header(config: pytest.Config) -> str:
    shift = config.getoption("--vary-seeds")
    return f"seeds: crc32 of the test's name{f' + {shift}' if shift else ''}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This test's seed: fixed by its name, shifted by --vary-seeds."""
    return zlib.crc32(request.node.name.encode()) + request.config.getoption("--vary-seeds")


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest, seed: int) -> None:
    if request.node.__class__.__name__ == "IPyNbCell":  # a notebook seeds itself, in a process of its own
        return
    torch.manual_seed(seed)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def site() -> Path:
    """The built book. Without it these tests are skipped, except under `make test`, which has just built it."""
    html = ROOT / "_build" / "html"
    if not (html / "index.html").exists():
        if os.environ.get("HITCHHIKER_SITE") == "required":
            pytest.fail("the book is not built: make book")
        pytest.skip("the book is not built: make book")
    return html
