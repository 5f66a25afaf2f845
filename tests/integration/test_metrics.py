"""What docs/telemetry.md says of metrics is what the real processes expose, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from superlink import Client
from superlink.stack import LocalStack

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "telemetry.md"
# | `superlink_gateway_requests_total` | counter | `path`, `method`, `status` | ... |
ROW = re.compile(
    r"^\| `(superlink_(gateway|orchestrator|worker|batches)_\w+)` \| (\w+) \| ([^|]*)\| [^|]+ \|$", re.MULTILINE
)
# A name with its type and labels.
Metric = tuple[str, str, frozenset[str]]


def documented() -> dict[str, set[Metric]]:
    """By room: gateway, orchestrator, worker, batches."""
    found: dict[str, set[Metric]] = {}
    for name, room, kind, labels in ROW.findall(PAGE.read_text(encoding="utf-8")):
        found.setdefault(room, set()).add((name, kind, frozenset(re.findall(r"`(\w+)`", labels))))
    return found


def exposed(url: str) -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """What ``/metrics`` of a process has: types by name, and labels by the names that have values already."""
    types: dict[str, str] = {}
    labels: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").raise_for_status().text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        types[name] = family.type
        for sample in family.samples:
            labels[name] = frozenset(sample.labels) - {"le"}
    return types, labels


def test_the_page_lists_the_metrics_that_the_processes_expose(stack: LocalStack, client: Client, sample: bytes) -> None:
    client.chat(sample, "How many dogs are there?")
    profile = stack.profile
    workers = {"mllm": profile.mllm, **profile.decoders}
    addresses = {
        ("gateway", "gateway"): stack.url,
        ("batches", "batches"): f"http://127.0.0.1:{profile.batches.metrics_port}",
        ("orchestrator", "orchestrator"): f"http://127.0.0.1:{profile.orchestrator.metrics_port}",
        **{(name, "worker"): f"http://127.0.0.1:{settings.metrics_port}" for name, settings in workers.items()},
    }
    pages = documented()
    for (process, room), url in addresses.items():
        types, labels = exposed(url)
        kept = {name: kind for name, kind in types.items() if not name.endswith("_created")}
        assert kept == {name: kind for name, kind, _ in pages[room]}, process
        said = {name: wanted for name, _, wanted in pages[room]}
        for name, found in labels.items():
            assert found == said.get(name, found), (process, name)
