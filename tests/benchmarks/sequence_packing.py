"""Tokens a second of packed against padded training: ``python tests/benchmarks/sequence_packing.py [--json FILE]``.

The same samples, with lengths as mixed data have them (many short answers, a few long conversations), go forward and
backward through the language model of an MLLM of the tiny size in two ways: in packs of at most ``--tokens`` tokens,
and in right-padded batches of ``--batch`` samples in the order in which they come. The ways take turns, and the clock
is the thread's own CPU time. Only real tokens count. ``--sorted`` also measures batches of similar length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from services.mllm.config import MllmConfig
from services.mllm.conversation import IGNORED
from services.mllm.model import Mllm, language_loss
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.loss_reduction import mean_loss
from services.trainer.adaptation.packed_attention import packed_losses, run_packed, use_packed_attention
from services.trainer.adaptation.packing import PackLimits, PackSample, collate_pack, form_packs


def draw_samples(count: int, longest: int, seed: int) -> list[PackSample]:
    """Samples of log-normal length, median 90 tokens, a third of each supervised."""
    numbers = np.random.default_rng(seed)
    samples = []
    for length in np.clip(numbers.lognormal(np.log(90), 0.9, count), 12, longest).astype(int):
        ids = numbers.integers(300, 900, length)
        labels = np.where(np.arange(length) > length * 2 // 3, ids, IGNORED)
        samples.append(PackSample(tuple(ids.tolist()), tuple(labels.tolist())))
    return samples


def run_packs(model: Mllm, samples: Sequence[PackSample], limits: PackLimits) -> None:
    """Forward and backward over all samples, in packs."""
    for pack in map(collate_pack, form_packs(samples, limits)):
        losses, numbers = packed_losses(model, run_packed(model, pack, None), pack)
        mean_loss(losses, numbers, "square").backward()
    model.zero_grad()


def run_padded(model: Mllm, samples: Sequence[PackSample], batch: int) -> None:
    """Forward and backward over all samples, in right-padded batches."""
    for first in range(0, len(samples), batch):
        part = samples[first : first + batch]
        shape = (len(part), max(sample.tokens for sample in part))
        ids, labels, mask = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED), torch.zeros(shape).long()
        for row, sample in enumerate(part):
            ids[row, : sample.tokens] = torch.tensor(sample.input_ids)
            labels[row, : sample.tokens] = torch.tensor(sample.labels)
            mask[row, : sample.tokens] = 1
        total, count = language_loss(model, model(ids, mask).hidden, labels)
        (total / count).backward()
    model.zero_grad()


def measure(count: int, tokens: int, batch: int, repeats: int, by_length: bool) -> dict[str, float]:
    """Real tokens a second of each way, and the ratio."""
    torch.manual_seed(0)
    tokenizer = MllmTokenizer.train(["Find the dog. Here is the cat."] * 20, 1000)
    model = Mllm(MllmConfig.for_tokenizer(tokenizer, vocab_size=1000))
    use_packed_attention(model)
    samples = draw_samples(count, tokens, seed=0)
    ordered = sorted(samples, key=lambda sample: sample.tokens)
    ways: dict[str, Callable[[], None]] = {
        "packed": lambda: run_packs(model, samples, PackLimits(tokens=tokens)),
        "padded": lambda: run_padded(model, samples, batch),
    }
    if by_length:
        ways["padded_by_length"] = lambda: run_padded(model, ordered, batch)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, run in ways.items():
            started = time.thread_time()
            run()
            # The first turn warms up.
            if repeat:
                seconds[way].append(time.thread_time() - started)
    real = sum(sample.tokens for sample in samples)
    figures = {f"{way}_tokens_per_s": real / statistics.median(values) for way, values in seconds.items()}
    figures["packed_over_padded"] = figures["packed_tokens_per_s"] / figures["padded_tokens_per_s"]
    padded = sum(
        len(part) * max(sample.tokens for sample in part)
        for part in (samples[first : first + batch] for first in range(0, count, batch))
    )
    return figures | {"tokens": float(real), "padded_tokens": float(padded)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=1024, help="of a pack")
    parser.add_argument("--batch", type=int, default=8, help="samples of a padded batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sorted", action="store_true", help="also measure batches of similar length")
    arguments = parser.parse_args()
    # Thread time is that of one thread.
    torch.set_num_threads(1)
    figures = measure(arguments.samples, arguments.tokens, arguments.batch, arguments.repeats, arguments.sorted)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
