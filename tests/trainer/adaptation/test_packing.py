"""Packing and loss reduction: nothing is lost, limits hold, and losses equal those of the samples alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from transformers import LlamaConfig

from services.mllm.config import LanguageSize, MllmConfig
from services.mllm.conversation import IGNORED
from services.mllm.model import Mllm
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.towers import VisionSize
from services.trainer.adaptation.loss_reduction import Reduction, mean_loss, reduce_losses
from services.trainer.adaptation.packed_attention import packed_losses, run_packed, use_packed_attention
from services.trainer.adaptation.packing import (
    ImageSpan,
    PackLimits,
    PackSample,
    collate_pack,
    form_packs,
    split_long,
)

pytestmark = pytest.mark.internvl

REDUCTIONS: tuple[Reduction, ...] = ("token", "sample", "square")


@pytest.mark.parametrize(("reduction", "expected"), [("token", 1.8), ("sample", 1.5), ("square", 5 / 3)])
def test_the_published_example_of_weighting(reduction: Reduction, expected: float) -> None:
    losses = torch.tensor([1.0] * 4 + [2.0] * 16)
    samples = torch.tensor([0] * 4 + [1] * 16)
    assert mean_loss(losses, samples, reduction).item() == pytest.approx(expected, abs=1e-6)
    # In any order, and put together from parts of whole samples.
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert mean_loss(losses[order], samples[order], reduction).item() == pytest.approx(expected, abs=1e-6)
    parts = [
        reduce_losses(losses[samples == number], samples[samples == number] - number, reduction) for number in (0, 1)
    ]
    assert (sum(total for total, _ in parts) / sum(weight for _, weight in parts)).item() == pytest.approx(expected)


def reduce_on_rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    weight = torch.tensor(2.0, requires_grad=True)
    tokens = torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 0.0, 0.0, 0.0]])[rank, : (4, 1)[rank]]
    mean_loss(weight * tokens, torch.zeros(len(tokens), dtype=torch.long), "square").backward()
    gradient = torch.as_tensor(weight.grad)
    distributed.all_reduce(gradient)
    Path(folder, str(rank)).write_text(str(gradient.item() / 2))
    distributed.destroy_process_group()


def test_averaged_gradients_of_two_ranks_are_those_of_all_their_tokens(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(reduce_on_rank, (str(tmp_path),), nprocs=2)
    # Weights: one half for each of the four tokens of a sample, one for the single token of the other.
    expected = ((1 + 3 + 5 + 7) / 2 + 2) / (4 / 2 + 1)
    assert [float((tmp_path / rank).read_text()) for rank in "01"] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_a_supervised_token_the_loss_is_zero_and_has_gradients(reduction: Reduction) -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = mean_loss(weight[:0], torch.zeros(0, dtype=torch.long), reduction)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def sample(tokens: int, tiles: Sequence[int] = (), supervised: int = 1) -> PackSample:
    """A sample whose images begin at equal distances, the first at token 0."""
    distance = tokens // max(1, len(tiles))
    labels = [IGNORED] * (tokens - supervised) + [1] * supervised
    spans = tuple(ImageSpan(number * distance, count) for number, count in enumerate(tiles))
    return PackSample(tuple(range(tokens)), tuple(labels), spans)


def test_every_sample_is_packed_once_and_limits_hold() -> None:
    numbers = random.Random(0)  # noqa: S311
    samples = [sample(numbers.randint(5, 300), [1] * numbers.randint(0, 6)) for _ in range(400)]
    limits = PackLimits(tokens=1000, tiles=12, open_packs=5)
    packs = list(form_packs(samples, limits))
    assert sorted(map(id, (piece for pack in packs for piece in pack))) == sorted(map(id, samples))
    for pack in packs:
        assert sum(piece.tokens for piece in pack) <= limits.tokens
        assert sum(piece.tiles for piece in pack) <= limits.tiles
    # Tiles are what fills these packs.
    assert sum(piece.tiles for piece in samples) / (len(packs) * limits.tiles) > 0.9


def test_packs_leave_when_full_or_when_too_many_are_open() -> None:
    limits = PackLimits(tokens=100, tiles=4, open_packs=2)
    packs = form_packs([sample(30, [4]), sample(100), sample(60), sample(61), sample(62, [1]), sample(30)], limits)
    assert [[piece.tokens for piece in pack] for pack in packs] == [
        [30],  # reached its tiles
        [100],  # reached its tokens
        [62],  # one open pack too many: that with most tiles leaves
        [61, 30],
        [60],
    ]


def test_a_sample_joins_the_pack_with_most_tiles_that_has_room() -> None:
    limits = PackLimits(tokens=100, tiles=4, open_packs=5)
    packs = list(form_packs([sample(60, [1]), sample(60, [2]), sample(40, [1, 1])], limits))
    assert [piece.tiles for piece in packs[0]] == [2, 2]


def test_too_long_samples_are_cut_where_images_begin() -> None:
    limits = PackLimits(tokens=100, tiles=2)
    long = PackSample(
        tuple(range(150)), (*([1] * 100), *([IGNORED] * 50)), tuple(ImageSpan(start, 1) for start in (10, 60, 100))
    )
    pieces = split_long(long, limits)
    # The third piece predicts nothing and is left out.
    assert [(piece.input_ids[0], piece.tokens) for piece in pieces] == [(0, 100)]
    assert [image.start for image in pieces[0].images] == [10, 60]
    assert split_long(sample(101), limits) == []
    assert split_long(sample(300, [1], supervised=300), limits) == []
    fitting = sample(100, [2])
    assert split_long(fitting, limits) == [fitting]


def test_positions_start_anew_and_no_sample_predicts_the_next_ones_first_token() -> None:
    pack = collate_pack([PackSample((7, 8, 9), (7, 8, 9)), PackSample((5, 6), (5, 6))])
    assert pack.input_ids.tolist() == [[7, 8, 9, 5, 6]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert pack.labels.tolist() == [[IGNORED, 8, 9, IGNORED, 6]]
    assert pack.samples.tolist() == [[0, 0, 0, 1, 1]]
    assert pack.lengths == (3, 2)


@pytest.fixture(scope="module")
def model() -> Mllm:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = MllmTokenizer.train(["Find the dog. Here is the cat."] * 20, 400)
    config = MllmConfig.for_tokenizer(
        tokenizer,
        tile_size=64,
        vision=VisionSize(stem_channels=8, hidden_size=32, layers=1, heads=2, intermediate_size=48),
        language=LanguageSize(hidden_size=48, layers=3, heads=4, key_value_heads=2, intermediate_size=64),
    )
    return Mllm(config).eval()


def conversation(model: Mllm, words: int, images: int, seed: int) -> PackSample:
    """Random words after ``images`` images of one tile, the last half of them supervised."""
    numbers = random.Random(seed)  # noqa: S311
    count = model.config.tokens_per_tile
    ids = [*[model.config.image_token_id] * (count * images), *(numbers.randint(50, 200) for _ in range(words))]
    labels = [IGNORED] * (len(ids) - words // 2) + ids[len(ids) - words // 2 :]
    return PackSample(tuple(ids), tuple(labels), tuple(ImageSpan(count * number, 1) for number in range(images)))


def alone(model: Mllm, one: PackSample, features: Tensor | None) -> Tensor:
    """Losses of a sample in a batch of its own, through the model's ordinary forward pass."""
    ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])[0, 1:]
    hidden = model(ids, torch.ones_like(ids), features).hidden[0, :-1]
    supervised = labels != IGNORED
    logits = model.logits(hidden[supervised]).float()
    return torch.nn.functional.cross_entropy(logits, labels[supervised], reduction="none")


def test_packed_losses_and_gradients_equal_those_of_the_samples_alone(model: Mllm) -> None:
    """Several lengths, a sample of one token, and images in some: within 1e-5, in loss and in gradients."""
    shapes = [(12, 0), (40, 2), (1, 0), (7, 1), (90, 0)]
    samples = [conversation(model, words, images, seed) for seed, (words, images) in enumerate(shapes)]
    tiles = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = model.encode_images(tiles)
    taken = iter(features)
    each = [alone(model, one, torch.cat([next(taken) for _ in one.images]) if one.images else None) for one in samples]
    numbers = torch.arange(len(each)).repeat_interleave(torch.tensor([len(losses) for losses in each]))
    use_packed_attention(model)
    pack = collate_pack(samples)
    losses, packed_numbers = packed_losses(model, run_packed(model, pack, features.flatten(0, 1)), pack)
    assert torch.equal(packed_numbers, numbers)
    torch.testing.assert_close(losses, torch.cat(each), atol=1e-5, rtol=0)
    for reduction in REDUCTIONS:
        expected, packed = mean_loss(torch.cat(each), numbers, reduction), mean_loss(losses, numbers, reduction)
        assert packed.item() == pytest.approx(expected.item(), abs=1e-5)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        wanted = torch.autograd.grad(expected, parameters, retain_graph=True, allow_unused=True)
        given = torch.autograd.grad(packed, parameters, retain_graph=True, allow_unused=True)
        for one, other in zip(wanted, given, strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


def test_what_stands_before_a_sample_in_its_pack_changes_nothing(model: Mllm) -> None:
    use_packed_attention(model)
    last = conversation(model, 20, 0, seed=9)
    with torch.no_grad():
        states = [
            run_packed(model, collate_pack([conversation(model, words, 0, seed=words), last]), None)[0, words:]
            for words in (5, 60)
        ]
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=0)


def test_images_that_do_not_match_their_tokens_are_an_error(model: Mllm) -> None:
    use_packed_attention(model)
    pack = collate_pack([conversation(model, 5, 1, seed=0)])
    with pytest.raises(ValueError, match="image tokens"):
        run_packed(model, pack, torch.zeros(3, 48))


def test_whole_batches_still_run_as_before(model: Mllm) -> None:
    one = conversation(model, 30, 0, seed=4)
    ids = torch.tensor([one.input_ids])
    with torch.no_grad():
        use_packed_attention(model)
        whole = model(ids, torch.ones_like(ids)).hidden
        packed = run_packed(model, collate_pack([one]), None)
    torch.testing.assert_close(whole, packed, atol=1e-5, rtol=0)


def test_a_language_model_without_types_of_layers_runs_packed_too(model: Mllm) -> None:
    """Llama's configuration, which InternLM2 checkpoints get, does not name its layers' attention."""
    llama = LlamaConfig(
        vocab_size=model.config.vocab_size,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    public = model.config.internvl().to_dict() | {"text_config": llama.to_dict()}
    other = Mllm(model.config.model_copy(update={"public": public})).eval()
    use_packed_attention(other)
    samples = [conversation(other, words, 0, seed=words) for words in (9, 25)]
    with torch.no_grad():
        packed = run_packed(other, collate_pack(samples), None)[0]
        batches = [torch.tensor([one.input_ids]) for one in samples]
        each = [other(ids, torch.ones_like(ids)).hidden[0] for ids in batches]
    torch.testing.assert_close(packed, torch.cat(each), atol=1e-5, rtol=0)
