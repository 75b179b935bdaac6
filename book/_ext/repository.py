"""Where this copy of the book comes from: the one place that knows the repository's address.

The address is ``HITCHHIKER_REPOSITORY`` if that is set, else the git remote ``origin`` if it is an address on a host
(a clone of a local folder has none), else unknown.  A fork therefore gets its own links without an edit.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "HITCHHIKER_REPOSITORY"
PAGES_BRANCH = "gh-pages"
ROOT = Path(__file__).resolve().parents[2]


def normalise(remote: str) -> str | None:
    """The https address of a git remote, without user, password and ``.git``; None for a path on this machine.

    >>> normalise("git@example.org:ada/counts.git")
    'https://example.org/ada/counts'
    >>> normalise("https://ada:secret@example.org/ada/counts.git/")
    'https://example.org/ada/counts'
    >>> normalise("/home/ada/counts") is None
    True
    """
    remote = remote.strip()
    if "://" in remote:
        parts = urlsplit(remote)
        if parts.scheme not in {"https", "http", "ssh", "git", "git+ssh", "git+https"}:
            return None
        host, path = parts.hostname or "", parts.path
    else:
        scp = re.fullmatch(r"(?:[^@/\s]+@)?([^:/\s]+):(?!/?/)(\S+)", remote)  # user@host:owner/name
        if not scp:
            return None
        host, path = scp.groups()
    path = path.strip("/").removesuffix(".git").strip("/")
    # a host without a dot is an alias of this machine's own configuration: nobody else can follow it
    return f"https://{host.lower()}/{path}" if "." in host and path else None


def address(root: Path = ROOT) -> str | None:
    """The repository's address, or None when it is not known.  A variable that is no address is a ``ValueError``."""
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        if given.startswith("file://"):
            return given
        found = normalise(given)
        if found is None:
            raise ValueError(f"{VARIABLE} must be an https or ssh address of a git repository, got {given!r}")
        return found
    try:
        remote = subprocess.run(
            ["git", "-C", str(root), "config", "--get", "remote.origin.url"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git: the book still builds
        return None
    return normalise(remote.stdout) if remote.returncode == 0 else None


def colab_url(repository: str | None, name: str) -> str | None:
    """Where Colab opens the published notebook ``name`` (without suffix); None unless the repository is on GitHub."""
    match = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", repository or "")
    if not match:
        return None
    return f"https://colab.research.google.com/github/{match[1]}/blob/{PAGES_BRANCH}/notebooks/{name}.ipynb"


NOTICE = (
    f"The repository's address is not known, so pages get no Colab button: set {VARIABLE}=https://… "
    "or add a git remote called origin."
)
