"""InternVL checkpoints in their authors' layout: what the tensors mean, both conversions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from original_checkpoints import ARCHITECTURES, HEADS, KEY_VALUE_HEADS, LAYERS, WIDTH, write_original
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from services.mllm.conversation import ImagePart, Text, Turn, render
from services.mllm.conversion import convert
from services.mllm.model import Mllm
from services.mllm.slots import Step
from services.runtime.weights import WeightsError

pytestmark = pytest.mark.internvl

TEMPLATES = list(ARCHITECTURES)


def reference_tower(state: dict[str, Tensor], pixels: Tensor, is_6b: bool) -> Tensor:
    """Features [tiles, 4, hidden] by the published equations, straight from the original tensors."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        if is_6b:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
        return functional.layer_norm(x, (WIDTH,), weight, state[f"{name}.bias"], 1e-6)

    start = "vision_model.embeddings."
    kernel, bias = state[f"{start}patch_embedding.weight"], state[f"{start}patch_embedding.bias"]
    patches = functional.conv2d(pixels, kernel, bias, stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{start}class_embedding"].expand(len(pixels), -1, -1), patches], dim=1)
    x = x + state[f"{start}position_embedding"]
    for layer in range(LAYERS):
        at = f"vision_model.encoder.layers.{layer}."
        fused = functional.linear(norm(x, f"{at}norm1"), state[f"{at}attn.qkv.weight"], state.get(f"{at}attn.qkv.bias"))
        query, key, value = fused.chunk(3, dim=-1)
        if is_6b:
            query, key = norm(query, f"{at}attn.q_norm"), norm(key, f"{at}attn.k_norm")
        heads = [part.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for part in (query, key, value)]
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        projected = functional.linear(attended, state[f"{at}attn.proj.weight"], state[f"{at}attn.proj.bias"])
        x = x + state[f"{at}ls1"] * projected
        inner = functional.linear(norm(x, f"{at}norm2"), state[f"{at}mlp.fc1.weight"], state[f"{at}mlp.fc1.bias"])
        outer = functional.linear(functional.gelu(inner), state[f"{at}mlp.fc2.weight"], state[f"{at}mlp.fc2.bias"])
        x = x + state[f"{at}ls2"] * outer
    grid = x[:, 1:].reshape(len(pixels), 2, 2, 2, 2, WIDTH)
    tokens = grid.permute(0, 1, 3, 2, 4, 5).reshape(len(pixels), 4, 4 * WIDTH)
    normed = functional.layer_norm(tokens, (4 * WIDTH,), state["mlp1.0.weight"], state["mlp1.0.bias"], 1e-5)
    hidden = functional.gelu(functional.linear(normed, state["mlp1.1.weight"], state["mlp1.1.bias"]))
    return functional.linear(hidden, state["mlp1.3.weight"], state["mlp1.3.bias"])


def reference_internlm2(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits [length, vocabulary] of InternLM2 from the original tensors; q, k and v fused by key-value head."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * state[f"{name}.weight"]

    def rotate(x: Tensor) -> Tensor:  # (heads, length, width)
        width = x.shape[-1]
        frequencies = 1_000_000.0 ** -(torch.arange(0, width, 2) / width)
        angles = torch.arange(x.shape[1])[:, None] * frequencies
        cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
        return x * cos + torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1) * sin

    x = state["language_model.model.tok_embeddings.weight"][ids]
    groups = HEADS // KEY_VALUE_HEADS
    for layer in range(LAYERS):
        at = f"language_model.model.layers.{layer}."
        fused = functional.linear(norm(x, f"{at}attention_norm"), state[f"{at}attention.wqkv.weight"])
        by_head = fused.unflatten(-1, (KEY_VALUE_HEADS, groups + 2, -1))  # (length, kv, groups + 2, width)
        query = rotate(by_head[:, :, :groups].flatten(1, 2).transpose(0, 1))
        key = rotate(by_head[:, :, groups].transpose(0, 1)).repeat_interleave(groups, dim=0)
        value = by_head[:, :, groups + 1].transpose(0, 1).repeat_interleave(groups, dim=0)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + functional.linear(attended.transpose(0, 1).flatten(1), state[f"{at}attention.wo.weight"])
        normed = norm(x, f"{at}ffn_norm")
        gate = functional.silu(functional.linear(normed, state[f"{at}feed_forward.w1.weight"]))
        up = functional.linear(normed, state[f"{at}feed_forward.w3.weight"])
        x = x + functional.linear(gate * up, state[f"{at}feed_forward.w2.weight"])
    return functional.linear(norm(x, "language_model.model.norm"), state["language_model.output.weight"])


@pytest.mark.parametrize("is_6b", [False, True], ids=["300M", "6B"])
def test_the_tower_means_what_the_published_equations_say(tmp_path: Path, is_6b: bool) -> None:
    state = write_original(tmp_path, "internvl2_5", is_6b)
    model, _ = Mllm.load(tmp_path)
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_images(pixels), reference_tower(state, pixels, is_6b), atol=1e-5, rtol=1e-4
        )


def test_internlm2_means_what_its_fused_tensors_say(tmp_path: Path) -> None:
    state = write_original(tmp_path, "internlm2-chat")
    model, _ = Mllm.load(tmp_path)
    ids = torch.randint(20, 280, (1, 13), generator=torch.Generator().manual_seed(0))
    expected = reference_internlm2(state, ids[0])
    with torch.no_grad():
        logits = model.logits(model(ids, torch.ones_like(ids)).hidden)[0, :, : expected.shape[1]]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_family_answers_step_by_step_as_all_at_once(tmp_path: Path, template: str) -> None:
    write_original(tmp_path, template)
    model, tokenizer = Mllm.load(tmp_path)
    rendered = render([Turn("user", (ImagePart(0), Text("find the dog")))], tokenizer, [4], for_generation=True)
    ids = torch.tensor([rendered.input_ids])
    with torch.inference_mode():
        embeddings = model.embed(ids, model.encode_images(torch.ones(1, 3, 56, 56))[0])
        mask = torch.ones_like(ids)
        whole = model.run(embeddings, mask, torch.arange(ids.shape[1])[None]).hidden[0]
        cache, done, states = model.slot_cache(1), 0, []
        for width in (5, 1, 3, ids.shape[1] - 9):
            step = Step.plan(0, [done], [width], ids.device)
            states.append(model.run_step(embeddings[0, done : done + width], step, cache))
            done += width
    torch.testing.assert_close(torch.cat(states), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_6b", [False, True], ids=["300M", "6B"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_converting_there_and_back_gives_the_same_bits(tmp_path: Path, template: str, is_6b: bool) -> None:
    state = write_original(tmp_path / "original", template, is_6b)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    save_file(state, tmp_path / "original" / "model.safetensors")
    converted = convert(tmp_path / "original", tmp_path / "native")
    assert converted.template == template
    assert converted.parameters == sum(tensor.numel() for tensor in state.values())
    assert convert(tmp_path / "native", tmp_path / "again").layout == "original"
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) and again[name].dtype == torch.bfloat16 for name in state)
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_a_checkpoint_of_transformers_survives_the_way_over_the_original_layout(tmp_path: Path) -> None:
    write_original(tmp_path / "first", "internvl2_5")
    convert(tmp_path / "first", tmp_path / "native")
    # As a checkpoint that never was in the other layout.
    (tmp_path / "native" / "original_config.json").unlink()
    convert(tmp_path / "native", tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [InternVLConfig.from_pretrained(tmp_path / name).to_dict() for name in ("native", "back")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("template", TEMPLATES)
def test_transformers_itself_reads_what_was_converted(tmp_path: Path, template: str) -> None:
    write_original(tmp_path / "original", template)
    convert(tmp_path / "original", tmp_path / "native")
    ours, our_tokenizer = Mllm.load(tmp_path / "original")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "native").eval()
    assert isinstance(theirs, InternVLForConditionalGeneration)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    spoken = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "find the dog"}]}]
    text = tokenizer.apply_chat_template(spoken, tokenize=False, add_generation_prompt=True)
    text = text.replace("<IMG_CONTEXT>", "<img>" + 4 * "<IMG_CONTEXT>" + "</img>")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # Plain text begins with the same token as a conversation, if any.
    begins = [ids[0]] if template == "internlm2-chat" else []
    assert tokenizer("find").input_ids == [*begins, *tokenizer("find", add_special_tokens=False).input_ids]
    rendered = render([Turn("user", (ImagePart(0), Text("find the dog")))], our_tokenizer, [4], for_generation=True)
    assert ids == rendered.input_ids
    pixels, row = torch.ones(1, 3, 56, 56), torch.tensor([ids])
    with torch.no_grad():
        expected = theirs(input_ids=row, pixel_values=pixels, attention_mask=torch.ones_like(row)).logits
        hidden = ours(row, torch.ones_like(row), ours.encode_images(pixels)[0]).hidden
    torch.testing.assert_close(ours.logits(hidden)[..., : expected.shape[-1]], expected, atol=1e-5, rtol=1e-4)
    images = AutoImageProcessor.from_pretrained(tmp_path / "native", backend="pil")
    assert (images.size["height"], images.max_patches, images.crop_to_patches) == (56, 12, True)


def test_a_converted_folder_is_served_like_the_original(tmp_path: Path) -> None:
    write_original(tmp_path / "original", "internlm2-chat", system_message="find the dog")
    convert(tmp_path / "original", tmp_path / "native")
    (first, first_tokenizer), (second, second_tokenizer) = (
        Mllm.load(tmp_path / name) for name in ("original", "native")
    )
    assert first.config.prompt == second.config.prompt
    assert first.config.prompt.template == "internlm2-chat"
    turns = [Turn("user", (Text("find"),))]
    assert (
        render(turns, first_tokenizer, [], for_generation=True).input_ids
        == render(turns, second_tokenizer, [], for_generation=True).input_ids
    )
    first.save(tmp_path / "saved", first_tokenizer)
    third, third_tokenizer = Mllm.load(tmp_path / "saved")
    assert third.config.model_dump_json() == first.config.model_dump_json()
    assert third_tokenizer.bos_id == first_tokenizer.bos_id is not None


def test_old_weights_keep_their_swapped_tokens(tmp_path: Path) -> None:
    state = write_original(tmp_path / "original", "Hermes-2", ps_version="v1", dynamic_image_size=False)
    model, tokenizer = Mllm.load(tmp_path / "original")
    assert model.config.max_tiles == 1
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.encode_images(pixels)
    torch.testing.assert_close(features, reference_tower(state, pixels, False)[:, [0, 2, 1, 3]], atol=1e-5, rtol=1e-4)
    model.save(tmp_path / "saved", tokenizer)
    again, _ = Mllm.load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(again.encode_images(pixels), features)
    with pytest.raises(WeightsError, match="ps_version is v1"):
        convert(tmp_path / "original", tmp_path / "native")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_llm_lora": 16}, "merge the adapters"),
        ({"use_backbone_lora": 16}, "merge the adapters"),
        ({"pad2square": True}, "pad2square"),
        ({"use_thumbnail": False}, "use_thumbnail"),
        ({"force_image_size": 224}, "force_image_size"),
        ({"llm_config": {"architectures": ["MambaForCausalLM"]}}, "MambaForCausalLM.*InternLM2ForCausalLM"),
        ({"vision_config": {}}, "vision_config.hidden_size"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    write_original(tmp_path, "internvl2_5", **changes)
    with pytest.raises(WeightsError, match=named):
        Mllm.load(tmp_path)


def test_an_unknown_prompt_template_is_named(tmp_path: Path) -> None:
    write_original(tmp_path, "internvl2_5")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"template": "internvl_zh"}))
    with pytest.raises(WeightsError, match=r"template: .*'Hermes-2'"):
        Mllm.load(tmp_path)


def test_lost_query_norms_of_the_6b_are_noticed(tmp_path: Path) -> None:
    state = write_original(tmp_path, "internvl2_5", is_6b=True)
    kept = {name: tensor for name, tensor in state.items() if "_norm" not in name}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"4 missing \(model\.vision_tower\.encoder\.layer\.0\.attention\.k_norm"):
        Mllm.load(tmp_path)
    save_file(state | {"surplus": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 unknown \(surplus\)"):
        Mllm.load(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"\*\.bin files are never opened"):
        Mllm.load(tmp_path)


def test_a_checkpoint_of_transformers_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    write_original(tmp_path / "original", "internvl2_5")
    convert(tmp_path / "original", tmp_path / "native")
    file = tmp_path / "native" / "model.safetensors"
    state = load_file(file)
    state.pop("model.multi_modal_projector.linear_1.bias")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing \(model\.multi_modal_projector\.linear_1\.bias"):
        Mllm.load(tmp_path / "native")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write_original(tmp_path / "original", "internvl2_5")
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match="not empty"):
        convert(tmp_path / "original", tmp_path / "native")
    assert [file.name for file in (tmp_path / "native").iterdir()] == ["notes.txt"]
