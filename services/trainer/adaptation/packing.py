"""Sequence packing: samples of any length one behind the other, so that a step computes no padding.

How packs are formed follows InternVL 2.5 (its adaptation scripts use the same): a pack is limited in tokens and in
tiles, a few packs are open at a time, and the one that is full leaves. Samples never see each other: attention is
computed sample by sample and positions start anew, so losses equal those of the samples alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from services.mllm.conversation import IGNORED

# A piece of a sample that was too long is kept only if more than this share of its tokens is supervised.
LEAST_SUPERVISED = 1 / 256


@dataclass(frozen=True)
class ImageSpan:
    """Where an image begins in a sample, its framing included, and how many tiles it has."""

    start: int
    tiles: int
    # Its first tile among all those that its sample was rendered with.
    first: int = 0


@dataclass(frozen=True)
class PackSample:
    """One rendered conversation; ``labels`` is -100 where nothing is predicted."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    images: tuple[ImageSpan, ...] = ()

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return len(self.input_ids)

    @property
    def tiles(self) -> int:
        """Tiles of all its images."""
        return sum(image.tiles for image in self.images)


@dataclass(frozen=True)
class PackLimits:
    """When a pack is full. The defaults are those of the published adaptation scripts."""

    tokens: int = 16384
    # Tiles that a pack is expected to reach; no sample joins a pack that it would take above.
    tiles: int = 48
    # Packs that are open at a time.
    open_packs: int = 20
    # Of a single sample.
    sample_tokens: int = 8192

    def fits(self, sample: PackSample) -> bool:
        """Whether ``sample`` can be packed whole."""
        return sample.tokens <= min(self.tokens, self.sample_tokens) and sample.tiles <= self.tiles


@dataclass
class _OpenPack:
    samples: list[PackSample] = field(default_factory=list)
    tokens: int = 0
    tiles: int = 0

    def add(self, sample: PackSample) -> None:
        self.samples.append(sample)
        self.tokens += sample.tokens
        self.tiles += sample.tiles


def form_packs(samples: Iterable[PackSample], limits: PackLimits) -> Iterator[list[PackSample]]:
    """Put ``samples`` together into packs; every sample, or what ``split_long`` keeps of it, leaves in exactly one.

    A sample joins the first open pack in which both limits hold, those with most tiles coming first.
    """
    opened: list[_OpenPack] = []
    for sample in samples:
        for piece in split_long(sample, limits):
            chosen = next(
                (
                    pack
                    for pack in opened
                    if pack.tokens + piece.tokens <= limits.tokens and pack.tiles + piece.tiles <= limits.tiles
                ),
                None,
            )
            if chosen is None:
                chosen = _OpenPack()
                opened.append(chosen)
            chosen.add(piece)
            if chosen.tiles >= limits.tiles or chosen.tokens >= limits.tokens:
                opened.remove(chosen)
                yield chosen.samples
            # Of text alone the longest counts as fullest.
            opened.sort(key=lambda pack: (-pack.tiles, -pack.tokens))
            if len(opened) > limits.open_packs:
                yield opened.pop(0).samples
    yield from (pack.samples for pack in opened)


def split_long(sample: PackSample, limits: PackLimits) -> list[PackSample]:
    """``sample`` itself where it fits; else its pieces, cut only where an image begins.

    A piece is kept when it fits, shows at least one tile and is supervised in more than 1/256 of its tokens.
    """
    if limits.fits(sample):
        return [sample]
    starts = [image.start for image in sample.images]
    # Before the first image there is only its introduction, which stays with it.
    bounds = [0, *starts[1:], sample.tokens] if starts else [0, sample.tokens]
    pieces: list[PackSample] = []
    begin = 0
    for place in range(1, len(bounds)):
        end = bounds[place]
        following = bounds[place + 1] if place + 1 < len(bounds) else None
        if following is None or not limits.fits(_cut(sample, begin, following)):
            pieces.append(_cut(sample, begin, end))
            begin = end
    return [piece for piece in pieces if limits.fits(piece) and _is_worth_keeping(piece)]


@dataclass(frozen=True)
class PackedBatch:
    """A pack as the language model takes it."""

    # [1, tokens] each. Labels of samples' first tokens are ignored: nothing before them predicts them.
    input_ids: Tensor
    labels: Tensor
    # Places in their own samples.
    position_ids: Tensor
    # The number of each token's sample in the pack.
    samples: Tensor
    # Tokens of each sample.
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> PackedBatch:
        """The pack on ``device``."""
        return PackedBatch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.position_ids.to(device),
            self.samples.to(device),
            self.lengths,
        )


def collate_pack(samples: Sequence[PackSample]) -> PackedBatch:
    """Lay the samples of a pack one behind the other."""
    labels = [label for sample in samples for label in (IGNORED, *sample.labels[1:])]
    lengths = tuple(sample.tokens for sample in samples)
    return PackedBatch(
        input_ids=torch.tensor([[token for sample in samples for token in sample.input_ids]]),
        labels=torch.tensor([labels]),
        position_ids=torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        samples=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).unsqueeze(0),
        lengths=lengths,
    )


def _is_worth_keeping(piece: PackSample) -> bool:
    supervised = sum(label != IGNORED for label in piece.labels)
    return piece.tiles >= 1 and supervised > LEAST_SUPERVISED * piece.tokens


def _cut(sample: PackSample, begin: int, end: int) -> PackSample:
    return PackSample(
        sample.input_ids[begin:end],
        sample.labels[begin:end],
        tuple(replace(image, start=image.start - begin) for image in sample.images if begin <= image.start < end),
    )
