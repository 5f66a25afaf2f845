"""From documents of texts and images to token ids.

    interleaved   <start> text <soi> image tokens <eoi> text ... <end>
    text first    <start> text <soi> image tokens <eoi>
    image first   <soi> image tokens <eoi> text <end>

A document that is too long is cut, but never inside an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Picture = TypeVar("Picture")


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens that frame texts and images, and of the one that every image token has."""

    start_of_text: int
    end_of_text: int
    image: int
    start_of_image: int
    end_of_image: int


@dataclass(frozen=True)
class Text:
    """Ordinary tokens of a document, none of them a mark."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenSequence(Generic[Picture]):
    """A document as ids, and its images in the order in which they occur."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...]


class SequenceBuilder:
    """Lays documents out; ``image_tokens`` is how many an image has, ``context`` how many a document may have."""

    def __init__(self, marks: Marks, image_tokens: int, context: int) -> None:
        self.marks = marks
        self.context = context
        self._image = (marks.start_of_image, *[marks.image] * image_tokens, marks.end_of_image)

    def interleaved(self, parts: Sequence[Text | Picture]) -> TokenSequence[Picture]:
        """A document with texts and images in any order."""
        ids, pictures = self._lay([self.marks.start_of_text], parts, self.context - 1)
        return TokenSequence((*ids, self.marks.end_of_text), pictures)

    def text_first(self, text: Text, picture: Picture) -> TokenSequence[Picture]:
        """A pair that trains the contrast: the image is what comes next. A text that is too long is cut."""
        room = self.context - len(self._image) - 1
        ids, pictures = self._lay([self.marks.start_of_text], (Text(text.ids[:room]), picture), self.context)
        return TokenSequence(tuple(ids), pictures)

    def image_first(self, text: Text, picture: Picture) -> TokenSequence[Picture]:
        """A pair that trains the generation of text from an image."""
        ids, pictures = self._lay([], (picture, text), self.context - 1)
        return TokenSequence((*ids, self.marks.end_of_text), pictures)

    def query(self, text: Text) -> tuple[int, ...]:
        """``<start> text <soi>``: at its last position is what the decoder expects an image to show."""
        return (self.marks.start_of_text, *text.ids[: self.context - 2], self.marks.start_of_image)

    def _lay(self, ids: list[int], parts: Sequence[Text | Picture], room: int) -> tuple[list[int], tuple[Picture, ...]]:
        """Append ``parts`` until ``room`` ids are there; the first part that does not fit ends the document."""
        pictures: list[Picture] = []
        for part in parts:
            if isinstance(part, Text):
                ids.extend(part.ids[: room - len(ids)])
                if len(ids) == room:
                    break
            elif len(ids) + len(self._image) <= room:
                ids.extend(self._image)
                pictures.append(part)
            else:
                break
        return ids, tuple(pictures)
