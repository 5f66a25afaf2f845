"""Batches of documents, several a row, with everything that the losses look up.

Where images, contexts and targets stand is worked out here, in a data process, so that no step has to ask the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from services.trainer.latent_compression.sequences import Marks, TokenSequence


@dataclass(frozen=True)
class InterleavedBatch:
    """Documents in rows. *Places* are positions in the flattened rows: row · length + column."""

    # [images, 3, side, side] float32, in the order of documents and within them.
    pixels: Tensor
    # [rows, length] int64
    ids: Tensor
    # [rows, length] int64: positions count from 0 in every document.
    positions: Tensor
    # [rows, length] int64: which document of its row, -1 where there is none.
    documents: Tensor
    # [images · image tokens] int64: the places of image tokens, in the order of ``pixels``.
    image_places: Tensor
    # [contrasted] int64: the images that have text before them, and the places of their <soi>.
    contrasted: Tensor
    context_places: Tensor
    # [targets] int64: the places before what is generated, and what that is.
    target_places: Tensor
    target_ids: Tensor
    # Whether all rows hold one document only.
    is_unpacked: bool

    def to(self, device: torch.device) -> InterleavedBatch:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of the documents in every row: each joins the first row that has room for it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number, length in enumerate(lengths):
        row = next((row for row, free in enumerate(left) if free >= length), None)
        if row is None:
            rows.append([])
            left.append(room)
            row = len(rows) - 1
        rows[row].append(number)
        left[row] -= length
    return rows


def collate_documents(documents: Sequence[TokenSequence[Tensor]], marks: Marks, context: int) -> InterleavedBatch:
    """Pack documents, whose pictures are ``[3, side, side]``, into rows of at most ``context`` tokens.

    Raises ValueError where there is no image at all.
    """
    pictures = [picture for document in documents for picture in document.pictures]
    if not pictures:
        raise ValueError("A batch needs an image.")
    rows = pack_rows([len(document.ids) for document in documents], context)
    length = max(sum(len(documents[number].ids) for number in row) for row in rows)
    # Padding has an id like any other; nothing looks at it, and it is never a target.
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    belongs = torch.full_like(ids, -1)
    first_place = {}
    for row, numbers in enumerate(rows):
        column = 0
        for order, number in enumerate(numbers):
            first_place[number] = row * length + column
            end = column + len(documents[number].ids)
            ids[row, column:end] = torch.tensor(documents[number].ids)
            positions[row, column:end] = torch.arange(end - column)
            belongs[row, column:end] = order
            column = end
    found = _Places()
    for number, document in enumerate(documents):
        found.add(document.ids, marks, first_place[number])
    return InterleavedBatch(
        pixels=torch.stack(pictures),
        ids=ids,
        positions=positions,
        documents=belongs,
        image_places=torch.tensor(found.images),
        contrasted=torch.tensor(found.contrasted, dtype=torch.long),
        context_places=torch.tensor(found.contexts, dtype=torch.long),
        target_places=torch.tensor(found.before_targets, dtype=torch.long),
        target_ids=torch.tensor(found.targets, dtype=torch.long),
        is_unpacked=len(rows) == len(documents),
    )


class _Places:
    def __init__(self) -> None:
        self.images: list[int] = []
        self.contrasted: list[int] = []
        self.contexts: list[int] = []
        self.before_targets: list[int] = []
        self.targets: list[int] = []
        self._images_seen = 0

    def add(self, ids: Sequence[int], marks: Marks, first: int) -> None:
        """Note what stands where in a document that begins at place ``first``."""
        framing = {marks.start_of_text, marks.image, marks.start_of_image, marks.end_of_image}
        text_seen = False
        for column, token in enumerate(ids):
            place = first + column
            if token == marks.image:
                self.images.append(place)
            elif token == marks.start_of_image:
                # Without a word before it an image has nothing to be told from: neither at the very start nor behind
                # <start> alone.
                if text_seen:
                    self.contrasted.append(self._images_seen)
                    self.contexts.append(place)
                self._images_seen += 1
            text_seen = text_seen or token not in framing
            # The model learns where images begin, but not that they have so many tokens.
            if column and token not in (marks.image, marks.end_of_image):
                self.before_targets.append(place - 1)
                self.targets.append(token)
