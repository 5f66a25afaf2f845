"""Ports are checked before anything starts, and the message says who wants them and how to move them."""

from __future__ import annotations

import socket

from superlink.ports import explain_ports_in_use, free_port_overrides, is_free, ports_in_use, ports_of
from superlink.profile import find_profile, load_profile

PROFILE = find_profile("tiny")


def test_every_port_of_a_profile_is_known() -> None:
    keys = {use.key for use in ports_of(load_profile(PROFILE))}
    assert {"gateway.port", "orchestrator.address", "mllm.address", "decoders.detection.address"} <= keys
    assert "decoders.detection.metrics_port" in keys


def test_metrics_that_are_off_take_no_port() -> None:
    profile = load_profile(PROFILE, {"mllm.metrics_port": 0})
    assert "mllm.metrics_port" not in {use.key for use in ports_of(profile)}


def test_a_port_in_use_is_named_with_the_setting_that_moves_it() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        free = free_port_overrides(load_profile(PROFILE))
        profile = load_profile(PROFILE, {**free, "mllm.address": f"127.0.0.1:{port}"})
        (use,) = ports_in_use(profile)
        text = explain_ports_in_use([use])
    assert f"Port {port} on 127.0.0.1 is in use; mllm wants it" in text
    assert "--set mllm.address=127.0.0.1:" in text
    assert "--free-ports" in text


def test_free_ports_are_free_and_all_different() -> None:
    profile = load_profile(PROFILE, free_port_overrides(load_profile(PROFILE)))
    ports = [use.port for use in ports_of(profile)]
    assert len(set(ports)) == len(ports)
    assert all(is_free(use.host, use.port) for use in ports_of(profile))
