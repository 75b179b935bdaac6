"""From an empty environment: the package installs from git, imports without the book's tools, and a notebook runs alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import readme_figure
from conftest import ROOT
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from myst_to_notebook import chapters
from nbclient import NotebookClient
from notebooks import private_sockets
from traitlets.config import Config

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(
    line.split("==")
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)
#: what `import hitchhiker` must not need
ROOMS = {"matplotlib", "sympy", "sklearn", "skimage", "typer", "rich", "altair", "pooch", "safetensors"}


def run(*command: object, **kwargs) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ------------------------------------------------------------------ what the files say


def test_floors_are_low_and_without_upper_pins():
    wanted = PROJECT["dependencies"] + [d for extra in PROJECT["optional-dependencies"].values() for d in extra]
    for requirement in wanted:
        assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?(>=[\d.]+)?(;.*)?", requirement), (
            f"{requirement} is pinned from above"
        )
    assert PROJECT["requires-python"] == ">=3.11"


def test_pins_satisfy_the_floors_and_cover_the_extras():
    for extra in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        for requirement in extra:
            name, _, floor = requirement.partition(">=")
            if name.startswith("hitchhiker["):
                continue
            assert name in PINNED, f"{name} is not in requirements.txt"
            assert [int(n) for n in PINNED[name].split(".")[:2]] >= [int(n) for n in floor.split(".")[:2]], name


def test_import_is_light():
    code = "import sys, hitchhiker; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(run(sys.executable, "-c", code, cwd=ROOT).split())
    assert not loaded & ROOMS, f"import hitchhiker imports {sorted(loaded & ROOMS)}"


def test_readme_s_example_runs():
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(example.strip().splitlines()) <= 10
    out = run(sys.executable, "-c", "import torch; torch.manual_seed(0)\n" + example, cwd=ROOT)
    gradient = [float(x) for x in re.findall(r"-?\d+\.\d*", out)]
    assert len(gradient) == 3
    for found, exact in zip(gradient, (1.0, -1.0, -7.0), strict=True):
        assert abs(found - exact) < 6 * 1.6  # a hundred samples: standard errors are below 1.6


def test_readme_s_figure_is_the_notebook_s():
    assert readme_figure.TARGET.read_bytes() == readme_figure.image(), "the README's figure is old: make figure"


def test_readme_starts_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert text.index("make book") < text.index("make test") < text.index("![") < text.index("```python")


@pytest.mark.parametrize("address", ["", "https://example.org/ada/counts"])
def test_no_file_names_this_machine(address):
    files = run("git", "-C", ROOT, "ls-files", "*.md", "*.toml", "*.txt", "*.yml", "*.py", "Makefile").split()
    for name in files:
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""
        assert str(ROOT) + "/" not in text, name


def test_an_old_python_is_refused_in_one_line(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "book", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MAKEFLAGS": ""},
    )
    assert done.returncode != 0
    assert f"Python >= 3.11 is needed, and {old} is Python 3.8.18" in done.stderr
    assert not (tmp_path / ".venv").exists()


# ------------------------------------------------------------------ a Colab rehearsal


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """This working tree as a git repository of its own, by its file:// address."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("origin") / "hitchhiker"
    for name in run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    run("git", "init", "-q", copy)
    run("git", "-C", copy, "add", "-A")
    run("git", "-C", copy, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "rehearsal")
    return copy.as_uri()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, repository: str) -> Path:
    """A new environment with the package and what it requires, nothing of the book."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(
        python, "-m", "pip", "install", "-q", "--upgrade", "pip"
    )  # before pip 24, `name @ git+file://…` is not understood
    torch = f"torch=={PINNED['torch']}"  # Colab has a torch; a bare name could bring CUDA packages
    run(python, "-m", "pip", "install", "-q", torch, f"hitchhiker @ git+{repository}")
    return python


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV", "HITCHHIKER_REPOSITORY"}}


@pytest.mark.slow
def test_core_alone_imports_and_samples(bare, tmp_path):
    code = (  # torch itself brings sympy
        "import importlib.util, torch, hitchhiker as hh\n"
        f"assert not [m for m in {sorted(ROOMS - {'sympy'})} if importlib.util.find_spec(m)]\n"
        "r = torch.ones(3, requires_grad=True)\n"
        "hh.EATPoisson(rate=r, temperature=0.1).rsample((5,)).sum().backward()\n"
        "print(r.grad.shape[0])\n"
    )
    assert run(bare, "-c", code, cwd=tmp_path, env=clean()).strip() == "3"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_one_notebook_alone_runs_in_a_new_environment(bare, repository, tmp_path):
    """As in Colab: no hitchhiker yet, one notebook in an empty folder, and the repository's address."""
    run(bare, "-m", "pip", "uninstall", "-q", "-y", "hitchhiker")
    run(bare, "-m", "pip", "install", "-q", f"ipykernel=={PINNED['ipykernel']}")
    chapter = next(p for p in chapters() if p.stem == "05_counting_arrivals")
    shutil.copy(chapter.with_suffix(".ipynb"), tmp_path)
    notebook = nbformat.read(tmp_path / f"{chapter.stem}.ipynb", as_version=4)

    class ThatPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                argv=[str(bare), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
            )

    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}, kernel_manager_class=ThatPython,
        config=Config(KernelManager=private_sockets()),
    )  # fmt: skip
    client.execute(env=clean() | {"HITCHHIKER_REPOSITORY": repository})
    assert not [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    where = run(bare, "-c", "import hitchhiker; print(hitchhiker.__file__)", cwd=tmp_path, env=clean())
    assert "site-packages" in where
