"""Batches keep their promises in a folder and in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from superlink.artifact_files import ArtifactFiles
from superlink.artifacts import ArtifactStore
from superlink.batch_documents import Cancel, Ending, Order, Outcome, Plan, Progress, ShardRecord
from superlink.batch_store import BatchName, BatchStore, Cut, fresh_id
from superlink.errors import SuperlinkError
from superlink.profile import ArtifactSettings
from tests.superlink.object_store import URL, object_store

pytestmark = pytest.mark.surface


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "artifacts")
        return
    with object_store(monkeypatch):
        yield URL


@pytest.fixture
def store(url: str) -> BatchStore:
    return BatchStore(ArtifactFiles(url))


def ordered(store: BatchStore, owner: str = "ada") -> BatchName:
    now = datetime.now(UTC)
    order = Order(
        id=fresh_id(),
        owner=owner,
        endpoint="/v1/detect",
        input_file_id="file-1",
        completion_window="24h",
        metadata=None,
        created_at=now,
        expires_at=now + timedelta(days=1),
    )
    store.add(order)
    return BatchName(owner, order.id)


def test_a_batch_is_what_its_documents_say(store: BatchStore, url: str) -> None:
    name, now = ordered(store), datetime.now(UTC)
    other = BatchStore(ArtifactFiles(url))
    steps = [
        (None, "validating"),
        (Plan(planned_at=now, lines=2, shards=1), "in_progress"),
        (Progress(completed=1, failed=0), "in_progress"),
        (Cancel(requested_at=now), "cancelling"),
        (Ending(reason="cancelled", decided_at=now), "cancelling"),
        (Outcome(status="cancelled", ended_at=now, completed=1, failed=1), "cancelled"),
    ]
    for document, status in steps:
        if document is not None:
            store.write(name, document)
        assert other.find("ada", name.id).status == status
    assert other.find("ada", name.id).progress == Progress(completed=1, failed=0)


def test_batches_are_their_owners_and_listed_in_order(store: BatchStore) -> None:
    names = [ordered(store) for _ in range(3)]
    theirs = ordered(store, "eve")
    ids = sorted((name.id for name in names), reverse=True)
    found, has_more = store.page("ada", 2, "")
    assert ([each.order.id for each in found], has_more) == (ids[:2], True)
    found, has_more = store.page("ada", 2, ids[1])
    assert ([each.order.id for each in found], has_more) == (ids[2:], False)
    for owner, batch_id in (("eve", ids[0]), ("ada", theirs.id), ("ada", "../eve"), ("nobody", ids[0])):
        with pytest.raises(SuperlinkError) as caught:
            store.find(owner, batch_id)
        assert caught.value.code == "unknown_batch"
    assert set(store.open_names()) == {*names, theirs}


def test_cuts_records_and_pieces_come_back(store: BatchStore) -> None:
    name = ordered(store)
    cuts = [Cut(0, 50, 1, 3, 0, 1), Cut(51, 90, 4, 2, 1, 2), Cut(91, 2**40, 6, 1, 3, 0)]
    token = store.write_cuts(name, iter(cuts), iter([2, 4, 5]))
    plan = Plan(planned_at=datetime.now(UTC), lines=6, shards=3, token=token)
    expected = [(cuts[0], {2}), (cuts[1], {4, 5}), (cuts[2], set())]
    assert [store.read_cut(name, plan, shard) for shard in range(3)] == expected

    assert store.read_record(name, 1) == ShardRecord()
    piece = store.write_piece(name, 1, [b"one\n", b"two\n"])
    record = ShardRecord(pieces=(piece,), answered=(4, 5), completed=2, is_done=True)
    store.write_record(name, 1, record)
    assert list(store.records(name)) == [(1, record)]
    with store.open_piece(name, piece) as file:
        assert list(file) == [b"one\n", b"two\n"]


def test_what_is_over_leaves_its_documents_and_these_go_with_time(store: BatchStore, url: str) -> None:
    name, still_open = ordered(store), ordered(store)
    now = datetime.now(UTC)
    store.write_cuts(name, iter([Cut(0, 1, 1, 1, 0, 0)]), iter([]))
    store.write_record(name, 0, ShardRecord(pieces=(store.write_piece(name, 0, [b"row\n"]),)))
    store.write(name, Outcome(status="completed", ended_at=now, completed=1, failed=0))
    store.close(name)
    store.close(name)
    assert store.open_names() == [still_open]
    assert list(store.records(name)) == []
    assert store.find("ada", name.id).status == "completed"
    # Files of clients beside it know nothing of it.
    assert ArtifactStore(ArtifactSettings(url=url), ArtifactFiles(url)).sweep() == 0

    assert store.forget_ended_before(now - timedelta(seconds=1)) == 0
    assert store.forget_ended_before(now + timedelta(seconds=1)) == 1
    assert [batch.order.id for batch in store.page("ada", 10, "")[0]] == [still_open.id]
