"""Who may import whom. The rooms stay apart, so that each process installs and scales by itself."""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.integration.lean_environment import distributions_of

REPOSITORY = Path(__file__).resolve().parent.parent
WORKERS = ("mllm", "detection", "pose", "segmentation", "diffusion")
SHARED = ("superlink", "services.runtime", "services.backbones", "services.grounding")
# Room -> the rooms that it may import, itself apart.
ALLOWED: dict[str, tuple[str, ...]] = {
    "superlink": (),
    "gateway": ("superlink",),
    "orchestrator": ("superlink",),
    "services.runtime": ("superlink",),
    "services.backbones": (),
    "services.grounding": ("superlink", "services.runtime", "services.backbones"),
    **{f"services.{worker}": SHARED for worker in WORKERS},
    "services.corpus": ("superlink", "services.runtime"),
    "services.instruct": ("superlink", "services.runtime"),
    "services.trainer": (*SHARED, *(f"services.{worker}" for worker in WORKERS)),
    "services.evaluation": (*SHARED, *(f"services.{worker}" for worker in WORKERS), "services.trainer"),
}
# These learn about a worker's network, never about how it is served.
NEVER_SERVICE = ("services.trainer", "services.evaluation")
WITHOUT_TORCH = ("superlink", "gateway", "orchestrator")
OURS = ("superlink", "gateway", "orchestrator", "services")
HEAVY = ("torch", "transformers", "mmdet", "mmcv", "mmengine", "diffusers")


def room_of(module: str) -> str | None:
    """The room that a dotted module name lies in, or None when it is not ours."""
    parts = module.split(".")
    if parts[0] == "services":
        return ".".join(parts[:2]) if len(parts) > 1 else None
    return parts[0] if parts[0] in ALLOWED else None


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module that ``source`` imports, inside functions too, with relative imports made absolute."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                # ``from services.detection import service`` imports the submodule.
                yield f"{base}.{alias.name}"


def source_files() -> list[Path]:
    return sorted(file for root in OURS for file in (REPOSITORY / root).rglob("*.py"))


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    room = room_of(module)
    if room is None:
        return []
    problems = []
    for imported in imported_modules(source, module, is_package):
        target = room_of(imported)
        if target is not None and target != room and target not in ALLOWED[room]:
            problems.append(
                f"{module} imports {imported}: {room} may import {', '.join(ALLOWED[room]) or 'no other room'}"
            )
        is_service = target is not None and target != room and "service" in imported.split(".")[2:3]
        if room in NEVER_SERVICE and is_service:
            problems.append(f"{module} imports {imported}: networks only, never a service")
        if room in WITHOUT_TORCH and imported.split(".")[0] in HEAVY:
            problems.append(f"{module} imports {imported}: {room} runs without torch")
    return problems


def test_every_room_imports_only_what_it_may() -> None:
    problems = [
        problem
        for file in source_files()
        for problem in violations(file.read_text(encoding="utf-8"), module_name(file), file.name == "__init__.py")
    ]
    assert not problems, "\n".join(problems)


def test_every_room_has_a_rule() -> None:
    rooms = {room_of(module_name(file)) for file in source_files()} - {None}
    assert rooms <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("superlink.client", "import gateway"),
        ("gateway.app", "from orchestrator.engine import Engine"),
        ("gateway.app", "def late():\n    import torch"),
        ("orchestrator.engine", "from services.runtime import server"),
        ("services.detection.model", "from services import mllm"),
        ("services.detection.service", "from ..mllm.model import Model"),
        ("services.trainer.loop", "from services.detection.service import Servicer"),
        ("services.evaluation.coco", "from services.detection import service"),
        ("services.runtime.server", "from services.mllm import conversation"),
    ],
)
def test_the_rules_catch_a_forbidden_import(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.app", "from superlink.v1 import orchestrator_pb2"),
        ("services.detection.service", "from services.runtime.server import Server"),
        ("services.trainer.loop", "from services.detection.model import DetectionModel"),
        ("services.mllm.model", "from services.mllm.service import something"),
        ("services.mllm.model", "from .conversation import Turn"),
    ],
)
def test_the_rules_let_allowed_imports_pass(module: str, source: str) -> None:
    assert not violations(source, module)


@pytest.mark.parametrize(
    ("extra", "rooms"),
    [
        ("gateway", ("gateway",)),
        ("orchestrator", ("orchestrator",)),
        ("mllm", ("services/mllm", "services/runtime")),
        ("detection", ("services/detection", "services/grounding", "services/runtime")),
        ("segmentation", ("services/segmentation", "services/grounding", "services/runtime")),
        ("pose", ("services/pose", "services/grounding", "services/runtime")),
        ("diffusion", ("services/diffusion", "services/runtime")),
        ("trainer", ("services/trainer",)),
        ("evaluation", ("services/evaluation",)),
    ],
)
def test_every_package_that_a_room_imports_comes_with_its_extra(extra: str, rooms: tuple[str, ...]) -> None:
    installed = distributions_of(extra).keys()
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for file in (file for room in rooms for file in (REPOSITORY / room).rglob("*.py")):
        for imported in imported_modules(file.read_text(encoding="utf-8"), module_name(file), False):
            top = imported.split(".")[0]
            names = {canonicalize_name(name) for name in owners.get(top, ())}
            if names and top not in OURS and not names & installed:
                missing.add(f"{module_name(file)} imports {top}")
    assert not missing, f"not in the extra {extra!r}: {sorted(missing)}"
