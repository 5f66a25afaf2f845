"""An environment that holds what one extra installs and nothing else, made of links in a moment."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def distributions_of(extra: str) -> dict[str, Distribution]:
    """Everything that ``pip install superlink[extra]`` would install, superlink itself apart."""
    found: dict[str, Distribution] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, frozenset[str]]] = [("superlink", frozenset({extra}))]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        distribution = importlib.metadata.distribution(name)
        if name != "superlink":
            found[name] = distribution
        for text in distribution.requires or []:
            requirement = Requirement(text)
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": each}) for each in (*extras, "")
            )
            if wanted:
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def make_lean_environment(extra: str, folder: Path) -> dict[str, str]:
    """Environment variables under which ``python -S`` sees the packages of ``extra`` and this repository."""
    shared = _shared_folders()
    for distribution in distributions_of(extra).values():
        files = _files_of(distribution)
        # A folder of one package is linked whole; a namespace that several share is linked file by file.
        for name in {file if file.partition("/")[0] in shared else file.partition("/")[0] for file in files}:
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            # Two packages may bring the same file, as the two of OpenCV do.
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(name))))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


@cache
def _shared_folders() -> frozenset[str]:
    """Top-level folders of site-packages that hold files of more than one package: ``google``."""
    owners: Counter[str] = Counter()
    for distribution in importlib.metadata.distributions():
        owners.update({file.partition("/")[0] for file in _files_of(distribution)})
    return frozenset(folder for folder, count in owners.items() if count > 1)


def _files_of(distribution: Distribution) -> list[str]:
    """The files of a package as its RECORD has them, relative to site-packages, without caches and scripts.

    ``Distribution.files`` says the same, but takes a minute over all packages.
    """
    lines = (distribution.read_text("RECORD") or "").splitlines()
    files = [row[0] for row in csv.reader(lines) if row]
    return [file for file in files if not file.startswith("../") and "__pycache__" not in file]


def run_python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter without its own site-packages."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
