"""The model: image tokens, query tables, padding, projection, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_mllm import ROUTES, build_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from services.mllm.config import DEFAULT_ROUTES
from services.mllm.conversation import IGNORED, ImagePart, Rendered, RoutedPhrase, Text, Turn, render
from services.mllm.model import Mllm, language_loss
from services.mllm.super_link import ProjectionHead, Route, SuperLink
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.towers import VisionSize
from services.runtime.weights import WeightsError


def conversation(tokenizer: MllmTokenizer, model: Mllm, question: str = "Find the dog.") -> Rendered:
    turns = [
        Turn("user", (ImagePart(0), Text(question))),
        Turn("assistant", (RoutedPhrase("[DET]", "dog"), Text(", "), RoutedPhrase("[DET]", "cat"), Text("."))),
    ]
    return render(turns, tokenizer, [model.config.tokens_per_tile], for_generation=False)


def image(seed: int = 0, tiles: int = 1) -> Tensor:
    return torch.randn(tiles, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def states(model: Mllm, ids: list[int], left: int = 0, right: int = 0, junk: int = 0) -> Tensor:
    """States of the real positions of one padded row."""
    row = torch.tensor([[junk] * left + ids + [junk] * right])
    mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
    hidden = model(row, mask, model.encode_images(image())[0]).hidden
    return hidden[0, left : left + len(ids)]


def test_pixel_shuffle_joins_four_neighbours_in_the_published_order(model: Mllm) -> None:
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    shuffled = model.internvl.model.pixel_shuffle(grid, scale_factor=0.5).view(4, 4)
    assert shuffled.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_the_first_pixel_unshuffle_has_rows_and_columns_swapped(tokenizer: MllmTokenizer) -> None:
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    newer, older = (build_model(tokenizer, pixel_unshuffle=version).unshuffle(grid)[0] for version in ("v2", "v1"))
    assert newer.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert older.tolist() == [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]]


def test_one_tower_pass_gives_the_grid_and_the_librarys_features(model: Mllm) -> None:
    with torch.no_grad():
        output = model.tower(image(tiles=3))
        expected = model.internvl.get_image_features(image(tiles=3)).pooler_output
    assert output.grid.shape == (3, 32, 4, 4)
    assert output.features.shape == (3, model.config.tokens_per_tile, model.hidden_size)
    torch.testing.assert_close(output.features, expected)


def test_the_published_patch_embedding_is_there_too(tokenizer: MllmTokenizer) -> None:
    vision = VisionSize(patch_embedding="linear", hidden_size=32, layers=1, heads=2, intermediate_size=48)
    model = build_model(tokenizer, vision=vision)
    with torch.no_grad():
        assert model.encode_images(image()).shape == (1, 4, 48)


def test_padding_on_either_side_changes_no_state(tokenizer: MllmTokenizer, model: Mllm) -> None:
    ids = conversation(tokenizer, model).input_ids
    alone = states(model, ids)
    for left, right in ((5, 0), (0, 5), (3, 9)):
        for junk in (tokenizer.pad_id, tokenizer.encode_text("dog")[0]):
            torch.testing.assert_close(states(model, ids, left, right, junk), alone, atol=1e-5, rtol=1e-5)


def test_company_in_a_batch_changes_no_link(tokenizer: MllmTokenizer, model: Mllm) -> None:
    rows = [conversation(tokenizer, model), conversation(tokenizer, model, "图中有小狗吗？找到小狗和猫。")]
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [tokenizer.pad_id] * (longest - len(row.input_ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows])
    with torch.no_grad():
        features = model.encode_images(image(tiles=2)).flatten(0, 1)
        together = model.links(model(ids, mask, features).hidden, [row.groups for row in rows], "detection")
        for number, row in enumerate(rows):
            own = features.view(2, -1, features.shape[-1])[number]
            hidden = model(torch.tensor([row.input_ids]), torch.ones(1, len(row.input_ids)), own).hidden
            alone = model.links(hidden, [row.groups], "detection")[0]
            torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=1e-5)


def test_image_tokens_take_the_features_in_order(tokenizer: MllmTokenizer, model: Mllm) -> None:
    turns = [Turn("user", (ImagePart(0), ImagePart(1), Text("?")))]
    rendered = render(turns, tokenizer, [4, 8], for_generation=True)
    features = torch.arange(12.0).unsqueeze(1).expand(12, model.hidden_size)
    embedded = model.embed(torch.tensor([rendered.input_ids]), features)[0]
    places = [place for place, token in enumerate(rendered.input_ids) if token == tokenizer.image_context_id]
    assert embedded[places, 0].tolist() == list(range(12))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_wrong_number_of_image_features_is_an_error(tokenizer: MllmTokenizer, model: Mllm, count: int) -> None:
    ids = torch.tensor([[tokenizer.image_context_id] * 4])
    with pytest.raises(ValueError, match=f"4 image tokens, but {count} image features"):
        model.embed(ids, torch.zeros(count, model.hidden_size) if count else None)


def test_placeholders_take_the_rows_of_their_routes_table(tokenizer: MllmTokenizer, model: Mllm) -> None:
    link, det, gen = tokenizer.link_id, tokenizer.route_ids["[DET]"], tokenizer.route_ids["[GEN]"]
    ids = torch.tensor([[det, link, link, link, link, gen, *[link] * 6], [*[0] * 6, gen, link, link, det, link, link]])
    embedded = model.embed(ids, None)
    torch.testing.assert_close(embedded[0, 1:5], model.link.queries("[DET]"))
    torch.testing.assert_close(embedded[0, 6:], model.link.queries("[GEN]"))
    torch.testing.assert_close(embedded[1, 7:9], model.link.queries("[GEN]")[:2])
    torch.testing.assert_close(embedded[1, 10:], model.link.queries("[DET]")[:2])


@pytest.mark.parametrize("extra", [0, 5])
def test_placeholders_without_a_routing_token_are_an_error(tokenizer: MllmTokenizer, model: Mllm, extra: int) -> None:
    start = [tokenizer.route_ids["[DET]"]] if extra else tokenizer.encode_text("dog")
    with pytest.raises(ValueError, match="must follow a routing token"):
        model.embed(torch.tensor([start + [tokenizer.link_id] * max(extra, 1)]), None)


@pytest.mark.parametrize("row", range(4))
def test_a_query_row_changes_only_what_stands_behind_it(tokenizer: MllmTokenizer, row: int) -> None:
    model = build_model(tokenizer)
    rendered = conversation(tokenizer, model)
    before = states(model, rendered.input_ids)
    with torch.no_grad():
        model.link.queries("[DET]")[row] += 1.0
    after = states(model, rendered.input_ids)
    moved = (after - before).abs().amax(dim=1) > 1e-4
    first = rendered.groups[0].positions
    assert not moved[: first[row]].any()
    assert moved[list(first[row:])].all()
    assert moved[list(rendered.groups[1].positions)].all()


def test_projection_is_a_network_on_every_query_and_then_the_mean(model: Mllm) -> None:
    groups = torch.randn(5, 4, model.hidden_size)
    head = model.link.heads["detection"]
    assert isinstance(head, ProjectionHead)
    with torch.no_grad():
        projected = model.link.project(groups, "detection")
        torch.testing.assert_close(projected, model.link.project(groups[:, [2, 0, 3, 1]], "detection"))
        torch.testing.assert_close(projected, torch.stack([head.layers(group).mean(dim=0) for group in groups]))
        # Projecting the mean is something else: the network is not linear.
        assert (projected - head.layers(groups.mean(dim=1))).abs().max() > 1e-4


def test_a_diffusion_head_keeps_one_vector_a_query(tokenizer: MllmTokenizer, model: Mllm) -> None:
    turns = [
        Turn("user", (Text("?"),)),
        Turn("assistant", (RoutedPhrase("[GEN]", "cat"), RoutedPhrase("[DET]", "dog"))),
    ]
    rendered = render(turns, tokenizer, [], for_generation=False)
    ids = torch.tensor([rendered.input_ids])
    with torch.no_grad():
        hidden = model(ids, torch.ones_like(ids)).hidden
        assert model.links(hidden, [rendered.groups], "diffusion")[0].shape == (1, 6, 20)
        assert model.links(hidden, [rendered.groups], "detection")[0].shape == (1, 24)
        assert model.links(hidden, [[]], "diffusion")[0].shape == (0, 6, 20)


def test_routes_of_one_decoder_share_a_head_but_not_a_table() -> None:
    routes = [Route(token=token, decoder="detection", width=8) for token in ("[DET]", "[SEG]")]
    link = SuperLink(routes, 16, "1")
    assert set(link.heads) == {"detection"}
    assert not torch.equal(link.queries("[DET]"), link.queries("[SEG]"))
    with pytest.raises(ValueError, match="disagree"):
        SuperLink([*routes, Route(token="[X]", decoder="detection", width=9)], 16, "1")  # noqa: S106


def test_the_loss_counts_supervised_tokens_only(tokenizer: MllmTokenizer, model: Mllm) -> None:
    rendered = conversation(tokenizer, model)
    ids, labels = torch.tensor([rendered.input_ids]), torch.tensor([rendered.labels])
    with torch.no_grad():
        hidden = model(ids, torch.ones_like(ids), model.encode_images(image())[0]).hidden
        total, count = language_loss(model, hidden, labels)
        every = torch.log_softmax(model.logits(hidden[0]), dim=-1)
    expected = -sum(float(every[place - 1, label]) for place, label in enumerate(rendered.labels) if label != IGNORED)
    assert int(count) == sum(label != IGNORED for label in rendered.labels)
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_gradients_of_a_decoder_reach_language_model_queries_and_tower(tokenizer: MllmTokenizer) -> None:
    model = build_model(tokenizer)
    rendered = conversation(tokenizer, model)
    ids = torch.tensor([rendered.input_ids])
    hidden = model(ids, torch.ones_like(ids), model.encode_images(image())[0]).hidden
    model.links(hidden, [rendered.groups], "detection")[0].square().sum().backward()
    for parameter in (
        model.link.tables["det"],
        model.internvl.model.language_model.layers[0].mlp.up_proj.weight,
        model.internvl.model.vision_tower.embeddings.patch_embeddings.stem.stem[0].weight,
    ):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_a_saved_model_loads_with_the_same_answers(tokenizer: MllmTokenizer, model: Mllm, tmp_path: Path) -> None:
    model.save(tmp_path, tokenizer)
    loaded, loaded_tokenizer = Mllm.load(tmp_path)
    assert loaded.config == model.config
    assert loaded_tokenizer.routes == {"[DET]": 4, "[GEN]": 6}
    ids = conversation(tokenizer, model).input_ids
    torch.testing.assert_close(states(loaded, ids), states(model, ids))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_training_may_keep_other_tensors_beside_the_weights(
    tokenizer: MllmTokenizer, model: Mllm, tmp_path: Path
) -> None:
    model.save(tmp_path, tokenizer)
    save_file({"classifier.weight": torch.zeros(2)}, tmp_path / "dense.safetensors")
    Mllm.load(tmp_path)


def test_weights_that_are_not_finite_or_cut_off_are_refused(
    tokenizer: MllmTokenizer, model: Mllm, tmp_path: Path
) -> None:
    model.save(tmp_path, tokenizer)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        Mllm.load(tmp_path)
    file.write_bytes(whole)
    state = load_file(file)
    state["link.tables.det"][0, 0] = float("nan")
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"not finite \(link\.tables\.det"):
        Mllm.load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_with_a_remedy(
    tokenizer: MllmTokenizer, model: Mllm, tmp_path: Path, file: str
) -> None:
    model.save(tmp_path, tokenizer)
    (tmp_path / file).unlink()
    with pytest.raises(WeightsError, match=rf"{file}.*superlink train|superlink train"):
        Mllm.load(tmp_path)


def test_weights_that_do_not_fit_are_refused(tokenizer: MllmTokenizer, model: Mllm, tmp_path: Path) -> None:
    model.save(tmp_path, tokenizer)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("link.tables.det")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"link\.tables\.det"):
        Mllm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3}))
    with pytest.raises(WeightsError, match="pad_token_id"):
        Mllm.load(tmp_path)


@pytest.fixture(scope="module")
def public_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the public format, written by transformers itself, with a tokenizer that knows no routes."""
    folder = tmp_path_factory.mktemp("internvl-hf")
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "</ref>"]
    bare.train_from_iterator(
        ["find the dog"] * 9,
        trainers.BpeTrainer(
            vocab_size=290, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    bare.save(str(folder / "tokenizer.json"))
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": bare.get_vocab_size(),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 512,
        },
        image_token_id=bare.token_to_id("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_public_checkpoint_loads_as_it_is(public_folder: Path, tmp_path: Path) -> None:
    original = InternVLForConditionalGeneration.from_pretrained(public_folder).eval()
    model, tokenizer = Mllm.from_public(public_folder, routes=ROUTES)
    model.eval()
    assert model.config.tile_size == 56
    assert model.config.tokens_per_tile == 4
    assert model.config.vocab_size == len(tokenizer) > original.lm_head.out_features
    turns = [Turn("user", (ImagePart(0), Text("find the dog")))]
    rendered = render(turns, tokenizer, [4], for_generation=True)
    ids = torch.tensor([rendered.input_ids])
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        hidden = model(ids, torch.ones_like(ids), model.encode_images(pixels)[0]).hidden
        logits = model.logits(hidden)[..., : original.lm_head.out_features]
        expected = original(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    model.save(tmp_path, tokenizer)
    again, _ = Mllm.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(ids, torch.ones_like(ids), again.encode_images(pixels)[0]).hidden, hidden)


def test_the_service_can_be_pointed_at_a_public_checkpoint(public_folder: Path) -> None:
    model, tokenizer = Mllm.load(public_folder)
    assert model.config.name == public_folder.name
    # Its links were never trained, so no decoder takes them for its own.
    assert model.config.adapter_version == "untrained"
    assert tokenizer.routes == {route.token: route.queries for route in DEFAULT_ROUTES}


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, public_folder: Path) -> None:
    with pytest.raises(WeightsError, match="tokenizer.json"):
        Mllm.from_public(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((public_folder / "tokenizer.json").read_bytes())
    with pytest.raises(WeightsError, match="not an InternVL checkpoint"):
        Mllm.from_public(tmp_path)
