"""Contrast and generation: published numbers, and several processes against one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from services.trainer.distributed import average_gradients
from services.trainer.latent_compression.digit_documents import DIGIT_MARKS, DigitDocumentStream
from services.trainer.latent_compression.losses import contrast_loss, generation_loss
from services.trainer.latent_compression.packing import collate_documents
from services.trainer.latent_compression.sequences import SequenceBuilder, Text
from tests.trainer.latent_compression.small_model import DECODER, ENCODER, make_model

IMAGES = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
CONTEXTS = nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 0.8]]), dim=1)
SCALE = torch.tensor(10.0)


def test_the_contrast_of_three_vectors() -> None:
    logits = SCALE * IMAGES @ CONTEXTS.T
    expected = [[9.8058, 0.9950, 7.8087], [1.9612, 9.9504, 6.2470], [8.3205, 7.7396, 9.9388]]
    assert torch.allclose(logits, torch.tensor(expected), atol=1e-4)
    assert contrast_loss(IMAGES, CONTEXTS, SCALE, 3).item() == pytest.approx(0.144048, abs=1e-6)
    both = [nn.functional.cross_entropy(each, torch.arange(3)).item() for each in (logits, logits.T)]
    assert both == pytest.approx([0.140475, 0.147622], abs=1e-6)


def test_the_contrast_is_compared_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert contrast_loss(IMAGES, CONTEXTS, SCALE, 3).item() == pytest.approx(0.144048, abs=1e-6)


def test_images_and_contexts_play_the_same_part() -> None:
    assert contrast_loss(CONTEXTS, IMAGES, SCALE, 3).item() == pytest.approx(0.144048, abs=1e-6)


def test_what_is_all_alike_or_wholly_apart() -> None:
    alike = torch.tensor([[1.0, 0.0]]).expand(7, 2)
    assert contrast_loss(alike, alike, SCALE, 7).item() == pytest.approx(math.log(7))
    assert contrast_loss(torch.eye(7), torch.eye(7), torch.tensor(100.0), 7).item() == pytest.approx(0, abs=1e-6)


def test_one_candidate_teaches_nothing() -> None:
    images = IMAGES[:1].clone().requires_grad_()
    loss = contrast_loss(images, CONTEXTS[:1], SCALE, 1)
    loss.backward()
    assert loss.item() == 0
    assert images.grad is not None
    assert not images.grad.any()


def test_without_a_pair_or_a_token_losses_are_zero_and_not_nan() -> None:
    nothing = torch.zeros(0, 2, requires_grad=True)
    losses = [
        contrast_loss(nothing, nothing, SCALE, 4),
        generation_loss(nn.Linear(2, 5), nothing, torch.zeros(0, dtype=torch.long)),
    ]
    assert [loss.item() for loss in losses] == [0, 0]
    torch.stack(losses).sum().backward()


def test_logits_made_in_pieces_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=False)
    states, targets = torch.randn(30, 8), torch.randint(50, (30,))
    results = []
    for tokens in (100, 7):
        monkeypatch.setattr("services.trainer.latent_compression.losses._TOKENS_AT_ONCE", tokens)
        given = states.clone().requires_grad_()
        head.weight.grad = None
        loss = generation_loss(head, given, targets)
        loss.backward()
        results.append((loss.detach(), given.grad, head.weight.grad))
    assert nn.functional.cross_entropy(head(states), targets).item() == pytest.approx(results[0][0].item(), abs=1e-6)
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def documents_of(rank: int, first_has_contrast: bool) -> list:
    """Three documents and a pair without contrast on the second rank; on the first a document, or such a pair too."""
    builder = SequenceBuilder(DIGIT_MARKS, ENCODER.tokens, DECODER.context)
    stream = DigitDocumentStream(builder, seed=0, images_swapped=False)
    lone = builder.image_first(Text((4, 5)), stream[9].pictures[0])
    if rank == 0:
        return [stream[0]] if first_has_contrast else [lone]
    return [*(stream[number] for number in (1, 2, 3)), lone]


def gradients_of(documents: list, capacity: int) -> dict[str, Tensor]:
    model = make_model()
    batch = collate_documents(documents, DIGIT_MARKS, DECODER.context)
    output = model(batch)
    contrast = contrast_loss(output.image_features, output.context_features, model.logit_scale.exp(), capacity)
    generation = generation_loss(model.generation_head, output.target_states, batch.target_ids)
    (contrast + generation).backward()
    average_gradients(model.parameters())
    losses = {"contrast": contrast.detach(), "generation": generation.detach()}
    return losses | {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def work_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    pairs = slice(0, 1) if rank == 0 else slice(1, 3)
    vectors = contrast_loss(IMAGES[pairs], CONTEXTS[pairs], SCALE, 2)
    lonely = contrast_loss(IMAGES[: 2 * rank], CONTEXTS[: 2 * rank], SCALE, 2)
    nobody = contrast_loss(IMAGES[:0], CONTEXTS[:0], SCALE, 2)
    save_file({"vectors": vectors, "lonely": lonely, "nobody": nobody}, f"{folder}/{rank}.safetensors")
    for contrast in (True, False):
        save_file(gradients_of(documents_of(rank, contrast), 8), f"{folder}/{rank}_{contrast}.safetensors")
    distributed.destroy_process_group()


def test_two_processes_with_uneven_images_train_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work_on_rank, (str(tmp_path),), nprocs=2)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]

    # A rank's loss is the sum over its pairs, divided by half of all pairs.
    own = [ranks[rank]["vectors"].item() * 3 / 2 / pairs for rank, pairs in enumerate((1, 2))]
    assert own == pytest.approx([0.165917, 0.133114], abs=1e-6)
    assert sum(own) / 2 == pytest.approx(0.149515, abs=1e-6)  # ranks weighed alike, as released
    assert sum(rank["vectors"].item() for rank in ranks) / 2 == pytest.approx(0.144048, abs=1e-6)  # images alike, here
    # A rank without a pair takes part; nobody has one: no loss.
    assert ranks[0]["lonely"].item() == 0
    assert ranks[1]["lonely"].item() / 2 == pytest.approx(contrast_loss(IMAGES[:2], CONTEXTS[:2], SCALE, 2).item())
    assert [rank["nobody"].item() for rank in ranks] == [0, 0]

    for contrast in (True, False):
        alone = gradients_of([*documents_of(0, contrast), *documents_of(1, contrast)], 8)
        trained = [load_file(tmp_path / f"{rank}_{contrast}.safetensors") for rank in range(2)]
        for name in ("contrast", "generation"):
            assert sum(rank.pop(name).item() for rank in trained) / 2 == pytest.approx(alone.pop(name).item(), abs=1e-5)
        for rank in trained:
            for name, gradient in alone.items():
                # Biases of keys have no gradient but rounding.
                assert (rank[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_the_bound_of_mutual_information_grows_as_the_loss_falls() -> None:
    candidates = 64
    features: Callable[[float], Tensor] = lambda noise: nn.functional.normalize(  # noqa: E731
        torch.eye(candidates) + noise * torch.randn(candidates, candidates, generator=torch.Generator().manual_seed(0))
    )
    bounds = [
        math.log(candidates) - contrast_loss(torch.eye(candidates), features(noise), SCALE, candidates).item()
        for noise in (0.0, 0.3, 3.0)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert 0 <= bounds[0] <= math.log(candidates)
