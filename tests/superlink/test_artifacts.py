"""The artifact store keeps its promises in a folder and in an object store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from superlink.artifact_files import PIECE_BYTES, ArtifactFiles
from superlink.artifacts import ABANDONED_AFTER, ArtifactStore, open_store
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.profile import ArtifactSettings, find_profile, load_profile
from tests.superlink.object_store import URL, object_store

pytestmark = pytest.mark.surface


def store_at(url: str, **settings: Any) -> ArtifactStore:
    return ArtifactStore(ArtifactSettings(url=url, **settings), ArtifactFiles(url))


def kept(store: ArtifactStore, content: bytes = b"some content", owner: str = "ada", **fields: Any) -> str:
    artifact_id = fields.pop("artifact_id", "")
    with store.create(owner, artifact_id) as writer:
        writer.write(content)
        return writer.commit(**{"name": "scene.png", "purpose": "vision", **fields}).id


def content_of(store: ArtifactStore, artifact_id: str, owner: str = "ada") -> bytes:
    with store.open(store.get(owner, artifact_id)) as file:
        return file.read()


def ids(store: ArtifactStore, owner: str = "ada", **options: Any) -> list[str]:
    return [record.id for record in store.page(owner, **{"limit": 100, **options}).records]


def refusal(store: ArtifactStore, artifact_id: str, owner: str = "ada") -> str:
    with pytest.raises(SuperlinkError) as caught:
        store.get(owner, artifact_id)
    return caught.value.code


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "artifacts")
        return
    with object_store(monkeypatch):
        yield URL


@pytest.fixture
def store(url: str) -> ArtifactStore:
    return store_at(url)


def test_what_is_kept_is_found_whole_in_every_process_with_the_same_address(store: ArtifactStore, url: str) -> None:
    # Larger than what an object store is sent at a time.
    content = os.urandom(PIECE_BYTES + 1000)
    before = datetime.now(UTC)
    artifact_id = kept(store, content, name="Sñow 雪.png", purpose="vision", keep_s=3600)

    other = store_at(url)
    record = other.get("ada", artifact_id)
    assert (record.name, record.purpose, record.owner) == ("Sñow 雪.png", "vision", "ada")
    assert record.size_bytes == len(content)
    assert content_of(other, artifact_id) == content
    assert before <= record.created_at <= datetime.now(UTC)
    assert record.expires_at - record.created_at == timedelta(hours=1)
    assert ids(other) == [artifact_id]


def test_an_empty_file_is_a_file(store: ArtifactStore) -> None:
    assert content_of(store, kept(store, b"")) == b""


def test_nobody_else_finds_it(store: ArtifactStore) -> None:
    artifact_id = kept(store)

    assert refusal(store, artifact_id, owner="eve") == "unknown_file"
    assert ids(store, owner="eve") == []
    with pytest.raises(SuperlinkError):
        store.delete("eve", artifact_id)
    assert ids(store) == [artifact_id]


def test_no_id_leads_out_of_the_folder(store: ArtifactStore) -> None:
    kept(store, owner="eve", artifact_id="file-1")
    for artifact_id in ("", "..", "../eve/file-1", "file-1.json", "a/b", "%2e%2e", "x" * 200, "nu\0ll", "file-1\n"):
        assert refusal(store, artifact_id) == "unknown_file"
    with pytest.raises(ValueError, match="names no owner"):
        store.get("../ada", "file-1")


def test_what_is_not_committed_is_never_found_and_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with store.create("ada", "half") as writer:
        writer.write(b"half of")
        assert ids(store_at(str(tmp_path / "artifacts"))) == []
        assert refusal(store, "half") == "unknown_file"
    assert refusal(store, "half") == "unknown_file"
    assert ids(store) == []
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_what_is_deleted_is_gone(store: ArtifactStore, tmp_path: Path) -> None:
    artifact_id, other = kept(store), kept(store)
    record = store.get("ada", artifact_id)

    store.delete("ada", artifact_id)

    assert refusal(store, artifact_id) == "unknown_file"
    assert ids(store) == [other]
    with pytest.raises(SuperlinkError, match="There is no file"):
        store.open(record)


def test_pages_follow_the_order_in_which_artifacts_were_made(store: ArtifactStore) -> None:
    made = []
    for number in range(5):
        made.append(kept(store, purpose="batch" if number % 2 else "vision"))
        time.sleep(0.002)

    assert ids(store, newest_first=False) == made
    assert ids(store) == made[::-1]
    first = store.page("ada", limit=2)
    assert ([record.id for record in first.records], first.has_more) == (made[:2:-1], True)
    second = store.page("ada", limit=3, after=made[3])
    assert ([record.id for record in second.records], second.has_more) == (made[2::-1], False)
    assert ids(store, after=made[3], newest_first=False) == made[4:]
    assert ids(store, purpose="batch", newest_first=False) == [made[1], made[3]]


def test_a_file_may_be_so_large(url: str) -> None:
    store = store_at(url, max_file_bytes=100)
    kept(store, bytes(100))
    with pytest.raises(SuperlinkError, match="larger than 100 bytes") as caught:
        kept(store, bytes(101))
    assert (caught.value.code, caught.value.http_status) == ("file_too_large", 413)
    with pytest.raises(SuperlinkError, match="larger than 100 bytes"):
        store.create("ada", size_bytes=101)
    assert len(ids(store)) == 1


def test_an_owner_may_keep_so_much(url: str) -> None:
    store = store_at(url, max_owner_bytes=250)
    first = kept(store, bytes(200))
    with pytest.raises(SuperlinkError, match="200 of 250 bytes") as caught:
        store.create("ada", size_bytes=51)
    assert (caught.value.code, caught.value.http_status) == ("storage_quota_exceeded", 413)
    store.create("ada", size_bytes=50).discard()
    kept(store, bytes(200), owner="eve")

    store.delete("ada", first)
    store.create("ada", size_bytes=250).discard()


def test_what_has_expired_is_not_found_and_then_swept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(url, keep_s=1)
    old = kept(store, keep_s=100_000)
    time.sleep(1.1)
    new = kept(store)

    assert refusal(store, old) == "unknown_file"
    assert ids(store) == [new]
    assert store.sweep() == 1
    assert content_of(store, new) == b"some content"
    assert store.sweep() == 0


def test_a_second_artifact_takes_the_place_of_the_first_at_once(url: str) -> None:
    store = store_at(url)
    contents = [bytes([number]) * 50_000 for number in range(8)]
    kept(store, contents[0], artifact_id="shard-7")
    seen, ended = set(), threading.Event()

    def read() -> None:
        reader = store_at(url)
        while not ended.is_set():
            content = content_of(reader, "shard-7")
            assert content in contents
            seen.add(content[0])

    reading = threading.Thread(target=read)
    reading.start()
    for content in contents[1:]:
        kept(store, content, artifact_id="shard-7")
    ended.set()
    reading.join()
    assert seen
    assert content_of(store, "shard-7") == contents[-1]
    assert ids(store) == ["shard-7"]


def test_two_writers_of_one_artifact_do_not_mix(store: ArtifactStore) -> None:
    with store.create("ada", "shard-7") as first, store.create("ada", "shard-7") as second:
        first.write(b"first ")
        second.write(b"second ")
        first.write(b"writer")
        second.write(b"writer")
        second.commit("shard", "batch")
        assert content_of(store, "shard-7") == b"second writer"
        first.commit("shard", "batch")
    assert content_of(store, "shard-7") == b"first writer"


@pytest.mark.faults
def test_a_killed_writer_leaves_nothing_that_is_found_and_is_swept_up(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from tests.superlink.test_artifacts import store_at\n"
        "writer = store_at(sys.argv[1]).create('ada', 'half')\n"
        "writer.write(bytes(2**20))\n"
        "writer._file.flush()\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as writing:
        assert writing.stdout is not None
        assert writing.stdout.readline() == b"written\n"
        writing.send_signal(signal.SIGKILL)
    store = store_at(str(tmp_path))
    [left] = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert left.stat().st_size

    assert ids(store) == []
    assert store.sweep() == 0
    long_ago = time.time() - ABANDONED_AFTER.total_seconds() - 60
    os.utime(left, (long_ago, long_ago))
    assert store.sweep() == 1
    assert not left.exists()


@pytest.mark.faults
def test_a_broken_record_hides_its_artifact_and_no_other(tmp_path: Path) -> None:
    store = store_at(str(tmp_path))
    whole, broken = kept(store), kept(store)
    (tmp_path / "ada" / f"{broken}.json").write_bytes(b"")

    assert ids(store) == [whole]
    assert refusal(store, broken) == "unknown_file"


@pytest.mark.faults
def test_a_store_that_is_away_is_told_apart_from_a_file_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with object_store(monkeypatch) as server:
        store = store_at(URL)
        artifact_id = kept(store)
        server.stop()
        for ask in (lambda: store.get("ada", artifact_id), lambda: ids(store), lambda: kept(store)):
            with pytest.raises(SuperlinkError) as caught:
                ask()
            error = caught.value
            assert (error.code, error.http_status, error.service) == ("storage_unavailable", 503, "artifacts")
            assert error.retryable


@pytest.mark.faults
def test_a_folder_that_cannot_be_written_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SuperlinkError) as caught:
        kept(store_at(str(tmp_path / "file" / "artifacts")))
    assert caught.value.code == "storage_unavailable"


@pytest.mark.parametrize("url", ["nothing://bucket", "s3x://bucket/a"])
def test_an_unknown_kind_of_address_names_the_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"artifacts\.url"):
        store_at(url)


def test_a_profile_without_an_address_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = load_profile(find_profile("tiny"))
    monkeypatch.setenv("SUPERLINK_HOME", str(tmp_path))

    kept(open_store(profile))

    assert (tmp_path / "runs" / "stack" / "tiny" / "artifacts" / "ada").is_dir()
    named = profile.model_copy(update={"artifacts": ArtifactSettings(url=str(tmp_path / "elsewhere"))})
    kept(open_store(named))
    assert (tmp_path / "elsewhere" / "ada").is_dir()
