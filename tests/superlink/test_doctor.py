"""The doctor names what is missing and how to get it, and only that."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest

from superlink.doctor import Finding, examine, requirements_of
from superlink.ports import free_port_overrides
from superlink.profile import Profile, find_profile, load_profile


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with small files in place of weights; the doctor reads their names, digests and adapter versions."""
    for name in ("mllm", "detection", "segmentation", "pose", "diffusion"):
        folder = tmp_path / "weights" / "tiny" / name
        # Those of the tool that draws lie in parts.
        file = folder / ("unet/diffusion_pytorch_model" if name == "diffusion" else "model")
        file.parent.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"adapter_version": "tiny-1"}))
        file.with_suffix(".safetensors").write_bytes(name.encode())
    (tmp_path / "weights" / "tiny" / "mllm" / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("SUPERLINK_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def profile() -> Profile:
    file = find_profile("tiny")
    return load_profile(file, free_port_overrides(load_profile(file)))


def finding(findings: list[Finding], topic: str) -> Finding:
    return next(entry for entry in findings if entry.topic == topic)


def test_nothing_is_missing_in_a_complete_installation(profile: Profile, home: Path) -> None:
    assert [entry for entry in examine(profile) if entry.state == "missing"] == []


def test_missing_weights_are_named_with_a_remedy(profile: Profile, home: Path) -> None:
    (home / "weights" / "tiny" / "mllm" / "tokenizer.json").unlink()
    entry = finding(examine(profile), "weights mllm")
    assert entry.state == "missing"
    assert "tokenizer.json" in entry.text
    assert "git checkout" in entry.remedy


def test_weights_in_parts_are_missed_when_none_is_there(profile: Profile, home: Path) -> None:
    diffusion = profile.decoders["detection"].model_copy(update={"weights": Path("weights/tiny/diffusion")})
    drawing = profile.model_copy(update={"decoders": {**profile.decoders, "diffusion": diffusion}})
    assert finding(examine(drawing), "weights diffusion").state == "ok"
    (home / "weights" / "tiny" / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    entry = finding(examine(drawing), "weights diffusion")
    assert entry.state == "missing"
    assert "*.safetensors" in entry.text


def test_adapter_versions_that_differ_are_named(profile: Profile, home: Path) -> None:
    config = home / "weights" / "tiny" / "detection" / "config.json"
    config.write_text(json.dumps({"adapter_version": "tiny-2"}))
    entry = finding(examine(profile), "adapter detection")
    assert entry.state == "missing"
    assert "tiny-1" in entry.text
    assert "tiny-2" in entry.text


def test_weights_that_differ_from_their_digest_are_named(profile: Profile, home: Path) -> None:
    digest = hashlib.sha256(b"detection").hexdigest()
    listing = home / "weights" / "tiny" / "SHA256SUMS"
    listing.write_text(f"{digest}  detection/model.safetensors\n")
    assert finding(examine(profile), "weights detection").state == "ok"
    (home / "weights" / "tiny" / "detection" / "model.safetensors").write_bytes(b"damaged")
    entry = finding(examine(profile), "weights detection")
    assert entry.state == "missing"
    assert "SHA256SUMS" in entry.text


def test_broken_configuration_of_weights_is_named(profile: Profile, home: Path) -> None:
    (home / "weights" / "tiny" / "mllm" / "config.json").write_text("{")
    assert "is not JSON" in finding(examine(profile), "weights mllm").text


def test_sprites_are_only_needed_for_training(profile: Profile, home: Path) -> None:
    entry = finding(examine(profile), "sprites")
    assert entry.state == "optional"
    assert entry.remedy == "make sprites"


def test_a_missing_package_is_named_with_its_extra(
    profile: Profile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "fastapi":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "uvicorn" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    entry = finding(examine(profile), "extra gateway")
    assert entry.state == "missing"
    assert "fastapi is not installed" in entry.text
    assert "uvicorn 0.1 does not fit" in entry.text
    assert "'.[gateway]'" in entry.remedy


def test_extras_of_the_edge_do_not_pull_in_torch() -> None:
    for extra in ("gateway", "orchestrator"):
        names = {requirement.name for requirement in requirements_of(extra)}
        assert names
        assert not names & {"torch", "transformers", "onedl-mmcv", "onedl-mmdetection"}


def test_the_extra_of_everything_holds_every_process() -> None:
    everything = {requirement.name for requirement in requirements_of("all")}
    for extra in ("gateway", "orchestrator", "mllm", "detection", "trainer", "evaluation"):
        assert {requirement.name for requirement in requirements_of(extra)} <= everything
