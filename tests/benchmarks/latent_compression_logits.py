"""A step of latent compression with logits at targets alone, against logits everywhere.

    python tests/benchmarks/latent_compression_logits.py [--json FILE]

The released ViT-B/32 for pairs, with 49 411 words, goes forward and backward over the same pairs in two ways: once as
the trainer does it, with vocabulary logits for what is generated, and once with logits at every position and labels
that leave out the others. The ways take turns, and the clock is the thread's own CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from services.mllm.towers import ClipTower
from services.trainer.latent_compression.losses import contrast_loss, generation_loss
from services.trainer.latent_compression.model import LatentCompressionModel
from services.trainer.latent_compression.packing import InterleavedBatch, collate_documents
from services.trainer.latent_compression.plan import DecoderSize
from services.trainer.latent_compression.sequences import Marks, SequenceBuilder, Text

_MARKS = Marks(49406, 49407, 49408, 49409, 49410)
_CONTEXT = 128
_IGNORED = -100


def draw_pairs(pairs: int, words: int, seed: int) -> InterleavedBatch:
    """Pairs with captions of ``words`` words on average, every other one with its image first."""
    rng = np.random.default_rng(seed)
    builder = SequenceBuilder(_MARKS, image_tokens=49, context=_CONTEXT)
    documents = []
    for number in range(pairs):
        text = Text(tuple(rng.integers(1, 49406, int(rng.poisson(words))).tolist()))
        image = torch.from_numpy(rng.normal(size=(3, 224, 224)).astype(np.float32))
        documents.append((builder.image_first if number % 2 else builder.text_first)(text, image))
    return collate_documents(documents, _MARKS, _CONTEXT)


def gathered(model: LatentCompressionModel, batch: InterleavedBatch) -> Tensor:
    """The trainer's way."""
    output = model(batch)
    contrast = contrast_loss(output.image_features, output.context_features, model.logit_scale.exp(), len(batch.pixels))
    return 0.1 * contrast + generation_loss(model.generation_head, output.target_states, batch.target_ids)


def full(model: LatentCompressionModel, batch: InterleavedBatch) -> Tensor:
    """Logits at every position."""
    pooled, tokens = model.pool(model.encoder.patch_tokens(batch.pixels))
    states = model.read(batch, tokens).flatten(0, 1)
    images = nn.functional.normalize(pooled[batch.contrasted], dim=-1)
    contexts = model.context_features(states[batch.context_places])
    contrast = contrast_loss(images, contexts, model.logit_scale.exp(), len(batch.pixels))
    labels = torch.full((len(states),), _IGNORED).index_copy(0, batch.target_places, batch.target_ids)
    logits = model.generation_head(model.generation_norm(states))
    return 0.1 * contrast + nn.functional.cross_entropy(logits, labels, ignore_index=_IGNORED)


def measure(pairs: int, words: int, repeats: int) -> dict[str, float]:
    """Median seconds a step of each way, and their ratio. Raises ValueError where the losses differ."""
    torch.manual_seed(0)
    decoder = DecoderSize(hidden_size=512, heads=8, pool_heads=8, context=_CONTEXT)
    model = LatentCompressionModel(ClipTower(patch_size=32), decoder, 49_411)
    batch = draw_pairs(pairs, words, seed=0)
    ways: dict[str, Callable[[LatentCompressionModel, InterleavedBatch], Tensor]] = {
        "gathered": gathered,
        "full": full,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for way, run in ways.items():
            started = time.thread_time()
            loss = run(model, batch)
            loss.backward()
            # The first turn warms up.
            if repeat:
                seconds[way].append(time.thread_time() - started)
            losses[way] = loss.item()
            model.zero_grad()
    if abs(losses["gathered"] - losses["full"]) > 1e-3:
        raise ValueError(f"The ways do not compute the same: {losses}.")
    figures = {f"{way}_s": statistics.median(values) for way, values in seconds.items()}
    return figures | {
        "full_over_gathered": figures["full_s"] / figures["gathered_s"],
        "targets": float(len(batch.target_ids)),
        "positions": float(batch.ids.numel()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--words", type=int, default=15, help="of a caption, on average")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # Thread time is that of one thread.
    torch.set_num_threads(1)
    text = json.dumps(measure(arguments.pairs, arguments.words, arguments.repeats), indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
