"""A batch as a client of OpenAI's API makes it, and what is in the files that come back."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import openai
from openai.types import Batch

from superlink.artifact_files import RECORD, ArtifactRecord
from tests.chaos.stack import ChaosStack

# Of one call of the client, which tries again by itself while services are killed.
CALL_TIMEOUT_S = 60.0
CALL_RETRIES = 10
POLL_INTERVAL_S = 0.5
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True)
class Results:
    """What came of a batch."""

    batch: Batch
    # Rows of both files.
    answered: list[Any]
    errors: list[Any]

    def ids(self) -> Counter[str]:
        """How often each custom_id is in either file."""
        return Counter(str(row["custom_id"]) for row in (*self.answered, *self.errors))


def client_of(stack: ChaosStack) -> openai.OpenAI:
    """OpenAI's own."""
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", timeout=CALL_TIMEOUT_S, max_retries=CALL_RETRIES)


def line(custom_id: str, url: str, body: dict[str, Any]) -> bytes:
    """One request of an input file."""
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


def start_batch(client: openai.OpenAI, lines: Iterable[bytes], endpoint: str) -> Batch:
    """Upload the lines and have them answered."""
    content = b"\n".join(lines) + b"\n"
    file = client.files.create(file=("chaos.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        # OpenAI has other endpoints.
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
    )


def wait_for(
    client: openai.OpenAI, batch: Batch, timeout_s: float, watch: Callable[[Batch], None] = lambda _: None
) -> Results:
    """The results once the batch is over. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while batch.status not in ENDED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the batch is {batch.status} after {timeout_s:g} s: {batch.request_counts}")
        time.sleep(POLL_INTERVAL_S)
        batch = client.batches.retrieve(batch.id)
        watch(batch)
    return Results(batch, _rows(client, batch.output_file_id), _rows(client, batch.error_file_id))


def half_written(stack: ChaosStack) -> list[str]:
    """Files of clients that can be found and are not whole."""
    found = []
    for file in stack.state.artifacts.glob(f"*/*{RECORD}"):
        record = ArtifactRecord.model_validate_json(file.read_bytes())
        content = (file.parent / record.content).read_bytes()
        if hashlib.sha256(content).hexdigest() != record.sha256 or len(content) != record.size_bytes:
            found.append(record.id)
    return found


def _rows(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    content = client.files.content(file_id).content
    assert content.endswith(b"\n"), "the file ends in the middle of a line"
    return [json.loads(row) for row in content.splitlines()]
