"""Trains an MLLM on conversation rows: the two stages of an InternVL, or its adaptation to a domain with replay.

The rows of a step are packed one behind the other; the loss is the weighted mean over all of them, whatever packs they
are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.backbones.defocus.drop_path import drop_path_rates
from services.backbones.defocus.tower import SectionedTower
from services.backbones.internvit import set_drop_path
from services.mllm.conversation import IGNORED
from services.mllm.model import Mllm
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.weights import load_weights
from services.trainer.adaptation.loss_reduction import mean_loss
from services.trainer.adaptation.meta_file import load_meta
from services.trainer.adaptation.new_model import give_new_tower, make_model
from services.trainer.adaptation.packed_attention import packed_losses, run_packed, use_packed_attention
from services.trainer.adaptation.packing import PackedBatch, collate_pack, form_packs
from services.trainer.adaptation.plan import Adaptation
from services.trainer.adaptation.pyramid_branches import is_branch, load_branches
from services.trainer.adaptation.replay import draw_order, mix
from services.trainer.adaptation.row_reader import LearnedRow, RowReader, shifted
from services.trainer.adaptation.row_stream import RowSets, RowStream
from services.trainer.adaptation.tuning import add_language_lora, frozen_modules, merge_lora
from services.trainer.recipe import Recipe
from services.trainer.stage import Stage
from superlink.configuration import ConfigurationError

_START_FROM = {"mllm", "vision_tower"}


@dataclass(frozen=True)
class StepPack:
    """A pack and the tiles ``[tiles, 3, size, size]`` of its images in order, none for text alone."""

    tokens: PackedBatch
    tiles: Tensor


@dataclass(frozen=True)
class HeldOutRow:
    """A row that is evaluated during training."""

    data_set: str
    number: int


class AdaptationStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises ConfigurationError for a recipe that lacks something, and what reading meta files and rows raises."""
        if recipe.adaptation is None:
            raise ConfigurationError("adaptation: missing; the stage of that name needs the section, and in it meta.")
        self.recipe = recipe
        self.plan = recipe.adaptation
        self.mllm, self.tokenizer = _start(recipe, self.plan)
        self.model = nn.ModuleDict({"mllm": self.mllm})
        if self.plan.trains == "lora":
            add_language_lora(self.mllm, self.plan.lora_rank)
        if self.plan.drop_path:
            _drop_paths(self.mllm.internvl.model.vision_tower, self.plan.drop_path)
        use_packed_attention(self.mllm)
        if self.plan.gradient_checkpointing:
            self.mllm.internvl.activation_checkpointing_enable()
        self.limits = self.plan.packing.limits(self.mllm.config.max_tokens)
        self.reader = RowReader(self.mllm.config, self.tokenizer, self.plan.max_tiles, self.plan.video_frames)
        learned = load_meta(self.plan.meta)
        if self.plan.replay is not None:
            learned = mix(learned, load_meta(self.plan.replay.meta), self.plan.replay.ratio)
        self.rows = RowSets(learned)
        self.held_out_rows = RowSets({} if self.plan.held_out is None else load_meta(self.plan.held_out))

    def frozen(self) -> Sequence[str]:
        """What the recipe says, and what ``trains`` leaves out."""
        return (*self.recipe.frozen, *(f"mllm.{path}" for path in frozen_modules(self.plan.trains)))

    def training_data(self) -> RowStream:
        """See ``RowStream``."""
        return RowStream(self.rows, self.reader, self.limits, self.recipe.seed)

    def held_out(self) -> list[HeldOutRow]:
        """So many rows as ``evaluation.scenes`` says, drawn from all sets; the same for every seed."""
        order = draw_order(self.held_out_rows.sets, seed=0)
        return [HeldOutRow(name, number) for name, number in order[: self.recipe.evaluation.scenes]]

    def collate(self, samples: Sequence[LearnedRow]) -> list[StepPack]:
        """Packs of the rows of a step."""
        tiles, counts = torch.cat([row.tiles for row in samples]), [len(row.tiles) for row in samples]
        placed = [shifted(row, sum(counts[:number])) for number, row in enumerate(samples)]
        packs = []
        for pieces in form_packs(placed, self.limits):
            spans = [image for piece in pieces for image in piece.images]
            places = [place for image in spans for place in range(image.first, image.first + image.tiles)]
            packs.append(StepPack(collate_pack(pieces), tiles[places]))
        return packs

    def losses(self, batch: list[StepPack]) -> dict[str, Tensor]:
        """The weighted mean cross-entropy of all answers of the step."""
        losses, samples, before = [], [], 0
        for pack in batch:
            tokens, states = self._run(pack)
            pack_losses, numbers = packed_losses(self.mllm, states, tokens)
            losses.append(pack_losses)
            samples.append(numbers + before)
            before += len(tokens.lengths)
        return {"language": mean_loss(torch.cat(losses), torch.cat(samples), self.plan.loss_reduction)}

    @torch.no_grad()
    def evaluate(self, scenes: Sequence[HeldOutRow]) -> dict[str, float]:
        """The mean cross-entropy of a token, and the share of answers that are right, of all and by data set.

        An answer is right when each of its tokens is the likeliest after those before it, as greedy decoding writes it.
        """
        was_training = self.mllm.training
        self.mllm.eval()
        losses: list[Tensor] = []
        right: dict[str, list[Tensor]] = {}
        for name in sorted({row.data_set for row in scenes}):
            numbers = [row.number for row in scenes if row.data_set == name]
            for start in range(0, len(numbers), self.recipe.schedule.batch_size):
                part = numbers[start : start + self.recipe.schedule.batch_size]
                data_set = self.held_out_rows.sets[name]
                rows = [self.reader.learn(self.held_out_rows.row(name, number), data_set) for number in part]
                for pack in self.collate(rows):
                    tokens, states = self._run(pack)
                    losses.append(packed_losses(self.mllm, states, tokens)[0])
                    right.setdefault(name, []).extend(self._answers_right(states, tokens))
        self.mllm.train(was_training)
        if not losses:
            return {}
        everything = [answer for answers in right.values() for answer in answers]
        figures = {"loss": float(torch.cat(losses).mean()), "answers": _share(everything)}
        return figures | {f"answers_{name}": _share(answers) for name, answers in right.items()}

    def export(self, folder: Path) -> None:
        """The MLLM as the service loads it, with what LoRA added folded in."""
        merge_lora(self.mllm)
        self.mllm.save(folder, self.tokenizer)

    def _run(self, pack: StepPack) -> tuple[PackedBatch, Tensor]:
        """The pack on the model's device, and its states ``[1, tokens, hidden]``."""
        device = self.mllm.query_start.device
        tokens = pack.tokens.to(device)
        features = self.mllm.encode_images(pack.tiles.to(device)).flatten(0, 1) if len(pack.tiles) else None
        return tokens, run_packed(self.mllm, tokens, features)

    def _answers_right(self, states: Tensor, tokens: PackedBatch) -> Iterator[Tensor]:
        """For every answer of a pack in order, whether all its tokens are the likeliest."""
        targets = tokens.labels[0, 1:]
        supervised = targets != IGNORED
        # Answers are stretches of supervised tokens, each with an unsupervised one before it.
        begins = supervised & ~torch.cat([supervised.new_zeros(1), supervised[:-1]])
        answer = begins.cumsum(dim=0)[supervised] - 1
        hits = self.mllm.logits(states[0, :-1][supervised]).argmax(dim=-1) == targets[supervised]
        for number in range(int(begins.sum())):
            yield hits[answer == number].all()


def _start(recipe: Recipe, plan: Adaptation) -> tuple[Mllm, MllmTokenizer]:
    unknown = sorted(key for key in recipe.start_from.keys() - _START_FROM if not is_branch(key))
    if unknown:
        raise ConfigurationError(
            f"start_from.{unknown[0]}: this stage knows {' and '.join(sorted(_START_FROM))}, and the branches of image "
            "pyramids: branch_1 and so on."
        )
    if ("mllm" in recipe.start_from) == (plan.new_model is not None):
        raise ConfigurationError("start_from.mllm, adaptation.new_model: exactly one of them says which model learns.")
    if plan.new_model is not None and plan.new_tower is not None:
        raise ConfigurationError("adaptation.new_tower: a new model says what its tower is: new_model.vision.")
    if plan.new_model is not None:
        mllm, tokenizer = make_model(plan.new_model, recipe.seed)
    elif plan.new_tower is not None:
        mllm, tokenizer = give_new_tower(recipe.start_from["mllm"], plan.new_tower, recipe.seed)
    else:
        mllm, tokenizer = Mllm.load(recipe.start_from["mllm"])
    if "vision_tower" in recipe.start_from:
        load_weights(mllm.internvl.model.vision_tower, recipe.start_from["vision_tower"])
    load_branches(mllm.internvl.model.vision_tower, recipe.start_from)
    return mllm, tokenizer


def _drop_paths(tower: nn.Module, rate: float) -> None:
    """Stochastic depth from 0 in the first layer to ``rate`` in the last. Raises ConfigurationError."""
    if isinstance(tower, InternVLVisionModel):
        set_drop_path(tower, rate)
    elif isinstance(tower, SectionedTower):
        tower.encoder.set_drop_path(drop_path_rates(0, 1, tower.encoder.config.depth, rate, rate))
    else:
        raise ConfigurationError(
            "adaptation.drop_path: only InternViT and De-focus towers take it; set it to 0. Branches and interactions "
            "of image pyramids have a drop_path of their own."
        )


def _share(answers: Sequence[Tensor]) -> float:
    return float(torch.stack(list(answers)).float().mean())
