"""A folder of images, asked by batches, with the answers in another folder: ``superlink batch run``.

The folder of the answers holds the state of the run as well, so that a run that was interrupted, at any point, goes on
from there: images with an answer are not asked again, and batches that were made are waited for, not made twice.

    OUT/NAME.EXTENSION.json    the answer about each image, in the same subfolders
    OUT/errors.jsonl           images without an answer, and why
    OUT/batch-run.json         the state
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from superlink.batch_documents import MAX_CUSTOM_ID_CHARACTERS
from superlink.batch_results import BatchJob, LineResult
from superlink.batches import Batches
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.images import encode_image

STATE_FILE, ERRORS_FILE = "batch-run.json", "errors.jsonl"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
# Of one batch: large enough to keep the workers busy, small enough to be uploaded while the one before is answered.
PART_BYTES = 64 * 1024 * 1024
PART_IMAGES = 2000
# Batches under way at the same time.
PARTS_AHEAD = 2
# Marks the batches of a run, so that one whose making was interrupted is found again.
RUN_KEY, PART_KEY = "superlink_run", "superlink_part"


class Part(BaseModel):
    """Some of the images, in one batch."""

    number: int
    # Their names, by custom_id.
    images: dict[str, str]
    begun_at: datetime
    # Empty until it is known.
    batch_id: str = ""


class RunState(BaseModel):
    """What is known of a run."""

    id: str
    endpoint: str
    # What every image is asked.
    question: dict[str, Any]
    parts_made: int = 0
    # Those whose answers have not been written yet.
    parts: list[Part] = []
    # Until then images that failed are not asked again.
    is_over: bool = False


@dataclass
class RunProgress:
    """How far a run is."""

    images: int = 0
    answered: int = 0
    # Images by the code of their error.
    failed: dict[str, int] = field(default_factory=dict)
    # Answered before this run began.
    known: int = 0

    @property
    def failures(self) -> int:
        """Images without an answer."""
        return sum(self.failed.values())


OnProgress = Callable[[RunProgress, int], None]


class FolderRun:
    """One run over a folder."""

    def __init__(self, batches: Batches, images: Path, out: Path, endpoint: str, question: Mapping[str, Any]) -> None:
        """``question``: the body of ``endpoint`` but for the image.

        Raises ConfigurationError where ``images`` is no folder, or ``out`` has the answers to another question.
        """
        if not images.is_dir():
            raise ConfigurationError(f"{images} is no folder.")
        self._batches = batches
        self._images = images
        self._out = out
        out.mkdir(parents=True, exist_ok=True)
        self._state = self._read_state(endpoint, dict(question))
        self._failed: set[str] = set()
        self.progress = RunProgress()

    def run(self, on_progress: OnProgress) -> RunProgress:
        """Ask what has no answer yet; returns when all has one, or an error.

        ``on_progress`` is called with what is written, and how many lines of batches under way are answered besides.
        Images that failed in a run that came to its end are asked again. May be interrupted at any point, and called
        again.
        """
        names = sorted(self._names())
        waiting = [name for name in names if not self._answer_file(name).exists()]
        self.progress = RunProgress(images=len(names), known=len(names) - len(waiting))
        self._take_up_failures()
        under_way = {name for part in self._state.parts for name in part.images.values()}
        left = self._cut([name for name in waiting if name not in under_way | self._failed])
        for part in self._state.parts:
            if not part.batch_id:
                self._submit(part, self._find(part))
        while True:
            while len(self._state.parts) < PARTS_AHEAD and (images := next(left, None)) is not None:
                self._begin(images)
            if not self._state.parts:
                self._state.is_over = True
                self._write_state()
                return self.progress
            part = self._state.parts[0]
            on_progress(self.progress, 0)
            try:
                self._wait_and_collect(part, on_progress)
            except SuperlinkError as error:
                if error.code not in ("unknown_batch", "unknown_file"):
                    raise
                # The deployment keeps no batch for ever, and one that was started for the run before is gone.
                self._make_again(part)
                continue
            self._state.parts.remove(part)
            self._write_state()
            on_progress(self.progress, 0)

    def answers(self) -> Iterator[LineResult]:
        """All that is written, for ``superlink.batch_coco``."""
        for name in sorted(self._names()):
            file = self._answer_file(name)
            if file.exists():
                yield LineResult(custom_id=name, body=json.loads(file.read_text(encoding="utf-8")))

    def _names(self) -> Iterator[str]:
        """Paths of the images below their folder."""
        for folder, _, files in os.walk(self._images):
            if Path(folder).resolve() == self._out.resolve():
                continue
            for file in files:
                if Path(file).suffix.lower() in SUFFIXES:
                    yield (Path(folder) / file).relative_to(self._images).as_posix()

    def _cut(self, names: Sequence[str]) -> Iterator[list[str]]:
        part: list[str] = []
        size = 0
        for name in names:
            try:
                bytes_of_name = (self._images / name).stat().st_size
            except OSError as error:
                self._fail(name, "image_missing", f"{name} cannot be read: {error.strerror}.")
                continue
            if bytes_of_name > PART_BYTES:
                self._fail(name, "image_too_large", f"{name} is {bytes_of_name:,} bytes long.")
                continue
            if part and (len(part) >= PART_IMAGES or size + bytes_of_name > PART_BYTES):
                yield part
                part, size = [], 0
            part.append(name)
            size += bytes_of_name
        if part:
            yield part

    def _begin(self, names: list[str]) -> None:
        self._state.parts_made += 1
        ids = {_custom_id(name): name for name in names}
        part = Part(number=self._state.parts_made, images=ids, begun_at=datetime.now(UTC))
        self._state.parts.append(part)
        # Before anything is sent, so that the batch is looked for and not made again.
        self._write_state()
        self._submit(part, None)

    def _submit(self, part: Part, found: BatchJob | None) -> None:
        if found is None:
            found = self._batches.create(
                self._requests(part),
                endpoint=self._state.endpoint,
                metadata={RUN_KEY: self._state.id, PART_KEY: str(part.number)},
            )
        part.batch_id = found.id
        self._write_state()

    def _find(self, part: Part) -> BatchJob | None:
        """The batch of a part whose making was interrupted, if it was made."""
        wanted = {RUN_KEY: self._state.id, PART_KEY: str(part.number)}
        after = None
        while True:
            page = self._batches.list(limit=100, after=after)
            for job in page.data:
                if job.metadata is not None and wanted.items() <= job.metadata.items():
                    return job
            # A clock that is an hour off does no harm.
            if not page.has_more or (part.begun_at - page.data[-1].created_at).total_seconds() > 3600:
                return None
            after = page.data[-1].id

    def _wait_and_collect(self, part: Part, on_progress: OnProgress) -> None:
        job = self._batches.wait(
            part.batch_id,
            on_progress=lambda job: on_progress(self.progress, job.counts.completed + job.counts.failed),
        )
        self._collect(part, job)

    def _make_again(self, part: Part) -> None:
        """Of the images that have neither an answer nor an error."""
        part.images = {
            custom_id: name
            for custom_id, name in part.images.items()
            if name not in self._failed and not self._answer_file(name).exists()
        }
        if part.images:
            self._submit(part, None)
        else:
            self._state.parts.remove(part)

    def _requests(self, part: Part) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for custom_id, name in part.images.items():
            try:
                image = encode_image((self._images / name).read_bytes()).data_url()
            except (OSError, ValueError):
                # Gone since it was listed, or no image: the gateway refuses the line, and it alone.
                image = "data:image/png;base64,"
            yield custom_id, {"image": image, **self._state.question}

    def _collect(self, part: Part, job: BatchJob) -> None:
        """Write the answers of a batch that is over; a second time changes nothing."""
        left = dict(part.images)
        for line in self._batches.results(job):
            name = left.pop(line.custom_id or "", None)
            if name is None:
                continue
            if line.body is not None:
                _write(self._answer_file(name), json.dumps(line.body, ensure_ascii=False))
                self.progress.answered += 1
            elif line.error is not None:
                self._fail(name, line.error.code, line.error.detail)
        reason = job.errors.data[0].message if job.errors is not None and job.errors.data else f"is {job.status}"
        for name in left.values():
            self._fail(name, f"batch_{job.status}", f"The batch {job.id} has no answer for it: {reason}")

    def _take_up_failures(self) -> None:
        """Those of a run that was interrupted count; the ones of a run that came to its end are forgotten."""
        file = self._out / ERRORS_FILE
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        file.unlink(missing_ok=True)
        if self._state.is_over:
            self._state.is_over = False
            self._write_state()
            return
        for line in lines:
            # The last one may be cut off.
            if line.endswith("\n"):
                entry = json.loads(line)
                self._fail(entry["image"], entry["code"], entry["detail"])

    def _fail(self, name: str, code: str, detail: str) -> None:
        if name in self._failed:
            # Written before an interruption.
            return
        self._failed.add(name)
        self.progress.failed[code] = self.progress.failed.get(code, 0) + 1
        with (self._out / ERRORS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"image": name, "code": code, "detail": detail}, ensure_ascii=False) + "\n")

    def _answer_file(self, name: str) -> Path:
        return self._out / f"{name}.json"

    def _read_state(self, endpoint: str, question: dict[str, Any]) -> RunState:
        try:
            state = RunState.model_validate_json((self._out / STATE_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return RunState(id=secrets.token_hex(8), endpoint=endpoint, question=question)
        except ValueError as error:
            raise ConfigurationError(f"{self._out / STATE_FILE} cannot be read. Choose another --out.") from error
        if (state.endpoint, state.question) != (endpoint, question):
            raise ConfigurationError(
                f"{self._out} has the answers to another question ({state.endpoint}, {json.dumps(state.question)}). "
                "Choose another --out."
            )
        return state

    def _write_state(self) -> None:
        _write(self._out / STATE_FILE, self._state.model_dump_json())


def _custom_id(name: str) -> str:
    """The name itself, where it is short enough and text."""
    raw = os.fsencode(name)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return sha256(raw).hexdigest()
    return name if len(name) <= MAX_CUSTOM_ID_CHARACTERS else sha256(raw).hexdigest()


def _write(file: Path, content: str) -> None:
    """In one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    partial.write_text(content, encoding="utf-8")
    partial.replace(file)
