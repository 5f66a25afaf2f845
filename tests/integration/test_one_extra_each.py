"""Each process imports and starts where only its extra is installed; the edge does so without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from superlink.ports import free_port_overrides
from superlink.profile import Profile, find_profile, load_profile, weights_folder
from tests.integration.lean_environment import REPOSITORY, distributions_of, make_lean_environment, run_python

MODULES = {
    "gateway": "gateway",
    "orchestrator": "orchestrator",
    "mllm": "services.mllm.service",
    "detection": "services.detection.service",
}
READY_WORDS = {"gateway": "listening", "orchestrator": "ready", "mllm": "ready", "detection": "ready"}
HEAVY = ("torch", "transformers", "mmdet", "mmcv", "mmengine")


@pytest.mark.parametrize("extra", ["gateway", "orchestrator"])
def test_the_edge_imports_without_torch(extra: str, tmp_path: Path) -> None:
    environment = make_lean_environment(extra, tmp_path)
    program = f"""
import importlib, pkgutil, sys
package = importlib.import_module({extra!r})
for module in pkgutil.walk_packages(package.__path__, {extra + "."!r}):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
present = [name for name in {HEAVY!r} if importlib.util.find_spec(name)]
print(len(sys.modules), present)
"""
    result = run_python(environment, "-c", "import importlib.util\n" + program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split(maxsplit=1)[1].strip() == "[]"


@pytest.mark.parametrize("extra", ["segmentation", "pose", "diffusion"])
def test_tools_without_weights_in_the_repository_import_with_only_their_extra(extra: str, tmp_path: Path) -> None:
    environment = make_lean_environment(extra, tmp_path)
    result = run_python(environment, "-c", f"import services.{extra}.service")
    assert result.returncode == 0, result.stderr


def test_the_lean_environments_lack_what_belongs_to_others() -> None:
    assert not {"torch", "transformers"} & distributions_of("gateway").keys()
    assert "fastapi" not in distributions_of("mllm")
    assert "transformers" not in distributions_of("detection")
    assert "onedl-mmdetection" not in distributions_of("mllm")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_process_starts_with_only_its_extra(name: str, profile: Profile, tmp_path: Path) -> None:
    moved = load_profile(find_profile("tiny"), free_port_overrides(profile))
    content = moved.model_dump(mode="json")
    content["mllm"]["weights"] = str(weights_folder(moved.mllm))
    for decoder, settings in moved.decoders.items():
        content["decoders"][decoder]["weights"] = str(weights_folder(settings))
    file = tmp_path / "profile.yaml"
    file.write_text(yaml.safe_dump(content))
    environment = make_lean_environment(name, tmp_path / "packages")
    # With all that traces need; nobody takes them.
    environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    command = [sys.executable, "-S", "-m", MODULES[name], "--profile", str(file)]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    # A process that never says that it is ready is ended, and with it the loop below.
    guard = threading.Timer(120, process.kill)
    guard.start()
    try:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("{") and json.loads(line)["message"] == READY_WORDS[name]:
                break
        else:
            pytest.fail("".join(lines))
        # The word is written a moment before the signal handlers are in place.
        time.sleep(0.5)
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        guard.cancel()
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["gateway", "orchestrator"])
def test_the_edge_installs_and_imports_from_its_extra_alone(extra: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # From a copy: building leaves files in the source folder.
    source = tmp_path / "source"
    for name in ("superlink", "gateway", "orchestrator", "services"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    constraints = REPOSITORY / "constraints.txt"
    command = [python, "-m", "pip", "install", "-q", "-c", constraints, f"{source}[{extra}]"]
    subprocess.run(command, check=True, timeout=600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([python, "-m", "pip", "check"], check=True, env=environment)
    program = f"import importlib.util, {extra}.__main__; assert importlib.util.find_spec('torch') is None"
    subprocess.run([python, "-c", program], check=True, cwd=tmp_path, env=environment)
    superlink = tmp_path / "venv" / "bin" / "superlink"
    training = subprocess.run(
        [superlink, "train", "tiny_detector"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert training.returncode == 1
    assert "pip install -c constraints.txt -e '.[trainer]'" in training.stderr
    assert "Traceback" not in training.stderr
