"""Data of any kind as conversations: classes, boxes, regions, views of six cameras, videos (Mini-InternVL, 3.3).

Readers of public data sets (``layouts``) call these; so can you for data of your own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from services.mllm.grounding_text import Corners, thousandths, write_grounded
from services.trainer.adaptation.multi_view import C_TAG_EXPLANATION, CANVAS_SIZE, c_tags_to_canvas
from services.trainer.adaptation.rows import IMAGE_MARK, VIDEO_MARK, ConversationRow, Message

SHORT_ANSWER = "Answer the question using a single word or phrase."
ONE_CLASS = "Answer with one word or a short phrase."
ONE_LETTER = "Answer with the option's letter from the given choices directly."

# Question and answer.
Exchange = tuple[str, str]


@dataclass(frozen=True)
class Picture:
    """An image of a data set: its path from the root on, and its size in pixels."""

    path: str
    width: int
    height: int


def visual_question(key: str, picture: Picture, exchanges: Sequence[Exchange]) -> ConversationRow:
    """Questions and answers about one image, as they are."""
    return ConversationRow(
        id=key,
        image=picture.path,
        width=picture.width,
        height=picture.height,
        conversations=_messages(IMAGE_MARK, exchanges),
    )


def classification(key: str, picture: Picture, label: str, labels: Sequence[str]) -> ConversationRow:
    """Which of ``labels`` the image shows. Raises ValueError where ``label`` is none of them."""
    _place(label, labels)
    question = f"Classify the image within one of the given classes: {', '.join(labels)}.\n{ONE_CLASS}"
    return visual_question(key, picture, [(question, label)])


def lettered_classification(
    key: str, picture: Picture, question: str, label: str, labels: Sequence[str]
) -> ConversationRow:
    """Which of ``labels`` holds, as options with letters. Raises ValueError for more options than letters."""
    if len(labels) > len(ascii_uppercase):
        raise ValueError(f"{len(labels)} options, but only {len(ascii_uppercase)} letters.")
    letter = ascii_uppercase[_place(label, labels)]
    options = "\n".join(f"{name}. {option}" for name, option in zip(ascii_uppercase, labels, strict=False))
    return visual_question(key, picture, [(f"{question}\n{options}\n{ONE_LETTER}", letter)])


def grounding(key: str, picture: Picture, things: Mapping[str, Sequence[Corners]]) -> ConversationRow:
    """Where things are: for every phrase all its boxes, in pixels, asked for one phrase after the other."""
    exchanges = []
    for phrase, boxes in things.items():
        where = [thousandths(box, picture.width, picture.height) for box in boxes]
        exchanges.append((f"Detect <ref>{phrase}</ref>.", write_grounded(phrase, where)))
    return visual_question(key, picture, exchanges)


def region(key: str, picture: Picture, box: Corners, answer: str) -> ConversationRow:
    """What the region in ``box``, in pixels, shows; the box stands in the question."""
    where = write_grounded("", [thousandths(box, picture.width, picture.height)])
    return visual_question(key, picture, [(f"Describe the region {where} in a short phrase.", answer)])


def marked_region(key: str, picture: Picture, mark: str, answer: str) -> ConversationRow:
    """What is marked on the pixels by ``mark``: a "box", a "mask" or a "contour"; see ``region_marks``."""
    return visual_question(key, picture, [(f"What does the {mark} in the image mark? {ONE_CLASS}", answer)])


def multi_view(key: str, path: str, exchanges: Sequence[Exchange]) -> ConversationRow:
    """Questions about six cameras; ``path`` is that of their ``stitch``, places in the texts are those of cameras."""
    told = [(c_tags_to_canvas(question), c_tags_to_canvas(answer)) for question, answer in exchanges]
    told[0] = (f"{C_TAG_EXPLANATION}\n{told[0][0]}", told[0][1])
    return visual_question(key, Picture(path, *CANVAS_SIZE), told)


def video(
    key: str, path: str, exchanges: Sequence[Exchange], clip: tuple[float, float] | None = None
) -> ConversationRow:
    """Questions about a video, or the part from ``clip[0]`` to ``clip[1]`` seconds."""
    return ConversationRow(id=key, video=path, clip=clip, conversations=_messages(VIDEO_MARK, exchanges))


def _messages(mark: str, exchanges: Sequence[Exchange]) -> tuple[Message, ...]:
    messages = []
    for number, (question, answer) in enumerate(exchanges):
        messages.append(Message(speaker="human", value=question if number else f"{mark}\n{question}"))
        messages.append(Message(speaker="gpt", value=answer))
    return tuple(messages)


def _place(label: str, labels: Sequence[str]) -> int:
    if label not in labels:
        raise ValueError(f"{label!r} is none of the classes {', '.join(labels)}.")
    return list(labels).index(label)
