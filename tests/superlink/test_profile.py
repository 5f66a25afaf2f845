"""A profile is checked key by key, and a wrong one is answered with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from superlink.cli.options import gateway_url
from superlink.configuration import ConfigurationError
from superlink.profile import find_profile, load_profile, weights_folder

TINY = """
name: tiny
mllm: {address: "127.0.0.1:50051", weights: weights/tiny/mllm}
decoders:
  detection: {address: "127.0.0.1:50052", weights: weights/tiny/detection}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "profile.yaml"
    file.write_text(text)
    return file


def test_the_shipped_profile_loads() -> None:
    profile = load_profile(find_profile("tiny"))
    assert profile.name == "tiny"
    assert "detection" in profile.decoders


def test_an_unknown_key_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    file = written(tmp_path, TINY + "gateway: {prot: 9000}\n")
    with pytest.raises(ConfigurationError, match=r"unknown key 'gateway\.prot'.*Did you mean 'port'"):
        load_profile(file)


def test_an_unknown_key_of_a_decoder_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    file = written(tmp_path, TINY.replace("detection: {address", "detection: {adress"))
    with pytest.raises(ConfigurationError, match=r"Did you mean 'address'"):
        load_profile(file)


def test_a_wrong_value_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gateway\.port"):
        load_profile(written(tmp_path, TINY), {"gateway.port": 70000})


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing key 'mllm'"):
        load_profile(written(tmp_path, "name: tiny\ndecoders: {}\n"))


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"profile\.yaml: is not valid YAML"):
        load_profile(written(tmp_path, "name: [tiny"))


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"No profile 'tinny'.*tiny"):
        find_profile("tinny")


def test_relative_weights_lie_in_the_superlink_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERLINK_HOME", str(tmp_path))
    profile = load_profile(written(tmp_path, TINY))
    assert weights_folder(profile.mllm) == tmp_path / "weights" / "tiny" / "mllm"


def test_overrides_replace_values_of_the_file(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, TINY), {"gateway.port": 9000, "decoders.detection.threads": 1})
    assert profile.gateway.port == 9000
    assert profile.decoders["detection"].threads == 1


def test_a_host_of_ipv6_stands_in_brackets_in_the_address(tmp_path: Path) -> None:
    for host, url in (("localhost", "http://localhost:9000"), ("::1", "http://[::1]:9000")):
        profile = load_profile(written(tmp_path, TINY), {"gateway.host": host, "gateway.port": 9000})
        assert gateway_url(profile, None) == profile.gateway.url == url


def test_a_gateway_on_the_network_needs_keys_or_a_word_that_it_does_not(tmp_path: Path) -> None:
    file = written(tmp_path, TINY)
    for host in ("0.0.0.0", "192.168.1.7", "::", "gateway"):  # noqa: S104
        with pytest.raises(ConfigurationError, match=r"gateway\.keys\.required") as refused:
            load_profile(file, {"gateway.host": host, "gateway.redis_url": "redis://:word@h"})
        # The section as a whole is not shown, since it may hold a password.
        assert "word" not in str(refused.value)
        load_profile(file, {"gateway.host": host, "gateway.keys.required": True})
        load_profile(file, {"gateway.host": host, "gateway.keys.allow_anyone": True})
    for host in ("127.0.0.1", "127.0.0.5", "::1", "localhost"):
        load_profile(file, {"gateway.host": host})


def test_a_worker_may_have_replicas_by_address_or_name(tmp_path: Path) -> None:
    file, key = written(tmp_path, TINY), "decoders.detection.replicas"
    places = ["10.0.0.4:50052", "[::1]:50052", "detection.vision.svc:50052"]
    assert load_profile(file, {key: places}).decoders["detection"].replicas == tuple(places)
    for wrong in ("detection.vision.svc", "http://detection:50052", "detection: 50052"):
        with pytest.raises(ConfigurationError, match=r"decoders\.detection\.replicas\.0"):
            load_profile(file, {key: [wrong]})
