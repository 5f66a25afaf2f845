"""The training loop: one for all stages, on one process or many, resumable at any checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from services.trainer import distributed
from services.trainer.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from services.trainer.recipe import Recipe, Schedule
from services.trainer.stage import Stage, StepSampler
from superlink.configuration import ConfigurationError

_LOG_EVERY_STEPS = 20


def train(recipe: Recipe, stage: Stage, folder: Path, stop_after: int | None = None) -> dict[str, float]:
    """Run ``recipe`` to its end, from the newest checkpoint in ``folder`` if there is one.

    Writes ``checkpoints/``, ``tensorboard/``, ``log.jsonl`` and ``export/`` there; returns the last evaluation.
    ``stop_after`` ends the run early after that many steps in all, with a checkpoint, as a kill would.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(recipe.threads)
    if device.type == "cuda":
        # TensorFloat-32, which is as good for training as float32.
        torch.set_float32_matmul_precision("high")
    # Batches are many small tensors, of which each would hold a descriptor open.
    torch.multiprocessing.set_sharing_strategy("file_system")
    rank, world_size = distributed.start(device)
    torch.manual_seed(recipe.seed + rank)
    model = stage.model.to(device)
    freeze(model, stage.frozen())
    distributed.copy_from_first_rank([*model.parameters(), *model.buffers()])
    optimiser = make_optimiser(model, recipe.schedule)
    digest = hashlib.sha256(recipe.model_dump_json(exclude_defaults=True).encode()).hexdigest()
    checkpoints = folder / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    first_step = load_checkpoint(newest, digest, model, optimiser) if newest else 0
    last_step = recipe.schedule.steps if stop_after is None else min(stop_after, recipe.schedule.steps)

    sampler = StepSampler(first_step, last_step, recipe.schedule.batch_size, rank, world_size)
    loader = DataLoader(
        stage.training_data(),
        batch_sampler=sampler,
        num_workers=recipe.data.workers,
        collate_fn=stage.collate,
        prefetch_factor=4 if recipe.data.workers else None,
        worker_init_fn=_single_thread,
    )
    validation = stage.held_out()
    figures: dict[str, float] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with _Reporter(folder, recipe, first_step, quiet=rank != 0) as reporter, _denormals_as_zero():
        for step, batch in enumerate(loader, start=first_step):
            rate = learning_rate(step, recipe.schedule)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            # Noise drawn inside the step depends on the step alone, so a resumed run draws the same.
            torch.manual_seed((recipe.seed * 1_000_003 + step) * world_size + rank)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.schedule.precision == "bfloat16"):
                terms = stage.losses(batch)
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            distributed.average_gradients(model.parameters())
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.schedule.gradient_clip)
            if torch.isfinite(norm):
                optimiser.step()
                stage.after_step()
            done = step + 1
            reporter.step(done, {name: term.detach() for name, term in terms.items()}, rate)
            if done % recipe.evaluation.every_steps == 0 or done == last_step:
                figures = stage.evaluate(validation)
                freeze(model, stage.frozen())
                reporter.evaluation(done, figures)
            if rank == 0 and (done % recipe.checkpoints.every_steps == 0 or done == last_step):
                save_checkpoint(checkpoints, done, digest, model, optimiser)
    if rank == 0 and last_step == recipe.schedule.steps:
        stage.export(folder / "export")
    distributed.stop()
    return figures


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Denormal numbers are many times slower on CPUs and mean nothing in training; to whoever called it they may."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Training mode for all but the ``frozen`` modules, which neither learn nor update statistics.

    Raises ConfigurationError for a path that the model has not.
    """
    model.train()
    for path in frozen:
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ConfigurationError(f"frozen: the model has no module {path!r}.") from error
        module.requires_grad_(False).eval()


def make_optimiser(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with one group for each learning-rate factor and decay setting.

    A factor applies to the modules whose dotted path starts with its key, compared path part by path part and never as
    a substring. Biases, norms and other vectors do not decay, nor do parameters that ``undecayed`` names.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1 and name.rpartition(".")[2] not in schedule.undecayed
            groups.setdefault((_factor(name, schedule.learning_rate_factors), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "factor": factor, "weight_decay": schedule.weight_decay if decays else 0.0}
            for (factor, decays), parameters in groups.items()
        ],
        lr=schedule.learning_rate,
        betas=(0.9, schedule.adam_beta2),
        eps=schedule.adam_epsilon,
        fused=any(parameter.is_cuda for parameter in model.parameters()),
    )


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then a cosine down to ``final_learning_rate`` of the peak."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return schedule.learning_rate * (schedule.final_learning_rate + (1 - schedule.final_learning_rate) * cosine)


def _factor(name: str, factors: dict[str, float]) -> float:
    """The factor of the longest path that ``name`` lies under, 1 where there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        if path in factors:
            return factors[path]
    return 1.0


def _single_thread(_worker: int) -> None:
    torch.set_num_threads(1)


class _Reporter:
    """Progress bar, TensorBoard and a JSON-lines log."""

    def __init__(self, folder: Path, recipe: Recipe, first_step: int, quiet: bool) -> None:
        self.quiet = quiet
        if quiet:
            return
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.log = (folder / "log.jsonl").open("a", encoding="utf-8")
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=Console(),
        )
        self.task = self.progress.add_task(recipe.name, total=recipe.schedule.steps, completed=first_step, status="")
        self.started = time.monotonic()
        self.sums: dict[str, torch.Tensor] = {}

    def __enter__(self) -> _Reporter:
        if not self.quiet:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.quiet:
            self.progress.stop()
            self.writer.close()
            self.log.close()

    def step(self, step: int, terms: dict[str, torch.Tensor], rate: float) -> None:
        if self.quiet:
            return
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(term)) + term
        self.progress.update(self.task, completed=step)
        if step % _LOG_EVERY_STEPS:
            return
        means = {name: float(total) / _LOG_EVERY_STEPS for name, total in self.sums.items()}
        self.sums = {}
        self._write(step, "loss", means | {"total": sum(means.values()), "learning_rate": rate})
        self.progress.update(self.task, status=f"loss {sum(means.values()):.3f}")

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        if not self.quiet:
            self._write(step, "evaluation", figures)
            self.progress.console.print(
                f"step {step}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
            )

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        seconds = round(time.monotonic() - self.started, 1)
        self.log.write(json.dumps({"step": step, "kind": kind, "seconds": seconds} | values) + "\n")
        self.log.flush()
