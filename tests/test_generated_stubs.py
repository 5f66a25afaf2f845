"""superlink/v1 is generated from protos/, and nobody forgot to do it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def test_generated_stubs_are_fresh(tmp_path: Path) -> None:
    protos = sorted(str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "protos").rglob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # protoc finds the mypy plugins on the PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *outputs, *protos],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        check=True,
    )
    generated = {file.name: file.read_text() for file in (tmp_path / "superlink" / "v1").iterdir()}
    present = {
        file.name: file.read_text()
        for file in (REPOSITORY / "superlink" / "v1").iterdir()
        if file.suffix in {".py", ".pyi"} and file.name != "__init__.py"
    }
    stale = sorted(name for name in generated.keys() | present.keys() if generated.get(name) != present.get(name))
    assert not stale, f"run `make proto`: {', '.join(stale)}"
