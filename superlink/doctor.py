"""What a deployment needs on this machine, what of it is missing, and how to get it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.version import Version

from superlink.configuration import ConfigurationError
from superlink.ports import explain_ports_in_use, ports_in_use
from superlink.profile import GatewaySettings, Profile, WorkerSettings, superlink_home, weights_folder
from superlink.stack import StackError
from superlink.stack.redis_server import find_server

PYTHON_VERSION = (3, 11)
# The processes of the tiny profile, most of them with torch, and room for images.
MEMORY_NEEDED_BYTES = 3 * 1024**3
DIGEST_FILE = "SHA256SUMS"
# Only for training, evaluation on fresh scenes, and development.
OPTIONAL_EXTRAS = ("trainer", "evaluation", "dev")
SPRITE_FILE = Path("sprites") / "sprites.safetensors"
# The oldest that has every command which the gateway uses.
OLDEST_REDIS = Version("6.2")
INSTALL_LOCAL = "make setup, or: pip install -c constraints.txt -e '.[local]'"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    # "missing" is needed to run the stack; "optional" is not there but only some commands need it.
    state: Literal["ok", "optional", "missing"]
    text: str
    remedy: str = ""


def examine(profile: Profile, url: str | None = None) -> list[Finding]:
    """Look at everything that ``profile`` needs. ``url`` is a stack that runs already, which may hold its ports."""
    findings = [_python()]
    findings += [_extra(name, needed=True) for name in ("gateway", "orchestrator", "mllm", *profile.decoders)]
    findings += [_extra(name, needed=False) for name in OPTIONAL_EXTRAS]
    findings += list(_weights(profile))
    findings.append(_ports(profile, url))
    findings += examine_redis(profile.gateway)
    findings.append(_sprites())
    findings.append(_memory())
    return findings


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] == PYTHON_VERSION:
        return Finding("Python", "ok", version)
    return Finding("Python", "missing", f"{version} runs; 3.11 is needed", "make setup PYTHON=/path/to/python3.11")


def _extra(name: str, *, needed: bool) -> Finding:
    """Whether the packages of one extra are installed in versions that fit."""
    topic = f"extra {name}"
    try:
        problems = [problem for problem in map(_problem, requirements_of(name)) if problem]
    except importlib.metadata.PackageNotFoundError:
        return Finding(topic, "missing", "the package superlink is not installed", "make setup")
    if not problems:
        return Finding(topic, "ok", "installed")
    remedy = f"make setup, or: pip install -c constraints.txt -e '.[{name}]'"
    return Finding(topic, "missing" if needed else "optional", ", ".join(problems), remedy)


def requirements_of(extra: str) -> list[Requirement]:
    """The packages of an extra, those of the extras that it includes among them.

    Raises importlib.metadata.PackageNotFoundError when superlink is not installed.
    """
    found: list[Requirement] = []
    for text in importlib.metadata.requires("superlink") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": extra}) or marker.evaluate({"extra": ""}):
            continue
        if requirement.name == "superlink":
            for included in sorted(requirement.extras):
                found += requirements_of(included)
        else:
            found.append(requirement)
    return found


def _problem(requirement: Requirement) -> str:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} does not fit {requirement.specifier}"
    return ""


def _weights(profile: Profile) -> Iterator[Finding]:
    workers: dict[str, WorkerSettings] = {"mllm": profile.mllm, **profile.decoders}
    adapters: dict[str, set[str]] = {}
    for name, settings in workers.items():
        folder = weights_folder(settings)
        topic = f"weights {name}"
        # In one file, or in parts with a folder each.
        weights = [file for file in folder.rglob("*.safetensors") if "training" not in file.relative_to(folder).parts]
        names = ("config.json", *(("tokenizer.json",) if name == "mllm" else ()))
        missing = [file for file in names if not (folder / file).is_file()] + ([] if weights else ["*.safetensors"])
        if missing:
            yield Finding(topic, "missing", f"{folder} has no {', '.join(missing)}", _weights_remedy(settings))
            continue
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            yield Finding(topic, "missing", f"{folder / 'config.json'} is not JSON: {error}", _weights_remedy(settings))
            continue
        adapters[name] = set(_values_of("adapter_version", config))
        digests = _digest_problem(folder)
        if digests:
            yield Finding(topic, "missing", digests, _weights_remedy(settings))
        else:
            size = sum(file.stat().st_size for file in weights) / 1e6
            yield Finding(topic, "ok", f"{folder} ({size:.1f} MB)")
    for name in profile.decoders:
        if "mllm" in adapters and name in adapters:
            yield _adapter(name, adapters["mllm"], adapters[name])


def _adapter(name: str, offered: set[str], wanted: set[str]) -> Finding:
    topic = f"adapter {name}"
    if wanted and wanted <= offered:
        return Finding(topic, "ok", ", ".join(sorted(wanted)))
    text = (
        f"the MLLM makes link embeddings for {', '.join(sorted(offered)) or 'no version'}, "
        f"{name} takes {', '.join(sorted(wanted)) or 'no version'}"
    )
    return Finding(topic, "missing", text, "take both weights from the same training run")


def _weights_remedy(settings: WorkerSettings) -> str:
    if settings.weights.is_absolute():
        return f"put the trained weights into {settings.weights}, or name another folder in the profile"
    return f"restore them with: git checkout -- {settings.weights}; or set SUPERLINK_HOME to the repository"


def _values_of(key: str, content: Any) -> Iterator[str]:
    """Every text under ``key``, at any depth of a JSON document."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _values_of(key, value)
    elif isinstance(content, list):
        for value in content:
            yield from _values_of(key, value)


def _digest_problem(folder: Path) -> str:
    """What differs from SHA256SUMS beside the folder or in it; empty when nothing does, or when there is none."""
    for home in (folder, folder.parent):
        listing = home / DIGEST_FILE
        if not listing.is_file():
            continue
        for line in listing.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            file = home / name.strip()
            if not file.is_relative_to(folder):
                continue
            if not file.is_file():
                return f"{file} is missing"
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                    return f"{file} is not the file that {listing} names"
    return ""


def _ports(profile: Profile, url: str | None) -> Finding:
    if url is not None:
        return Finding("ports", "ok", f"held by the stack that runs at {url}")
    in_use = ports_in_use(profile)
    if in_use:
        return Finding("ports", "missing", explain_ports_in_use(in_use), "superlink up --free-ports")
    return Finding("ports", "ok", "free")


def examine_redis(gateway: GatewaySettings) -> Iterator[Finding]:
    """Whether the Redis that the profile or the environment names answers, and keeps what it is given.

    Where none is named: whether one can come along with the stack.
    """
    try:
        from redis.exceptions import NoPermissionError, RedisError

        from superlink.redis_connection import URL_VARIABLE, connect, redis_url_of
    except ImportError as error:
        yield Finding("Redis", "missing", f"cannot be asked: {error}", INSTALL_LOCAL)
        return
    url = redis_url_of(gateway)
    naming = f"--set gateway.redis_url=redis://127.0.0.1:6379/0, the same in the profile, or {URL_VARIABLE}"
    if not url:
        try:
            yield Finding("Redis", "ok", f"comes along with superlink up ({find_server().name})")
        except StackError as error:
            yield Finding("Redis", "missing", "none is named, and none can come along", str(error))
        return

    async def ask() -> dict[str, Any]:
        async with connect(url) as redis:
            await redis.ping()
            try:
                return dict(await redis.info())
            except NoPermissionError:
                # A user that may not ask how the server is set up may still be all that the gateway needs.
                return {}

    try:
        facts = asyncio.run(ask())
    except ConfigurationError as error:
        yield Finding("Redis", "missing", str(error), naming)
    except (RedisError, OSError) as error:
        text = f"{_without_secrets(url)} does not answer: {error}"
        yield Finding("Redis", "missing", text, f"start it, or name another: {naming}")
    else:
        yield _redis_set_up(_without_secrets(url), facts)


def _without_secrets(url: str) -> str:
    """The address without user and password, and without options, which may hold them, too."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _redis_set_up(address: str, facts: dict[str, Any]) -> Finding:
    """What a Redis that answers says of itself."""
    version = str(facts.get("redis_version", ""))
    if version and Version(version) < OLDEST_REDIS:
        return Finding("Redis", "missing", f"{address} is {version}", f"Redis {OLDEST_REDIS} or newer, or Valkey")
    if facts.get("aof_enabled") == 0:
        text = f"{address} answers, but forgets API keys when it is restarted"
        return Finding("Redis", "optional", text, "give it an append-only file: appendonly yes")
    if str(facts.get("maxmemory_policy", "")).startswith("allkeys"):
        text = f"{address} answers, but may forget API keys when its memory is full"
        return Finding("Redis", "optional", text, "maxmemory-policy noeviction")
    return Finding("Redis", "ok", f"{address} answers{f' ({version})' if version else ''}")


def _sprites() -> Finding:
    file = superlink_home() / SPRITE_FILE
    if file.is_file():
        return Finding("sprites", "ok", str(file))
    return Finding("sprites", "optional", "not fetched; training and new scenes need them", "make sprites")


def _memory() -> Finding:
    try:
        available = _available_memory_bytes()
    except (OSError, ValueError):
        return Finding("memory", "optional", "this system does not say how much is free")
    text = f"{available / 1024**3:.1f} GiB free"
    if available >= MEMORY_NEEDED_BYTES:
        return Finding("memory", "ok", text)
    return Finding(
        "memory", "optional", f"{text}; {MEMORY_NEEDED_BYTES / 1024**3:.0f} GiB are comfortable", "close other programs"
    )


def _available_memory_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
