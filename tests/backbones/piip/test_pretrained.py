"""Public weights: small random checkpoints in the published key layouts, and what their own networks make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from services.backbones.piip.configuration import ConvNextBranchConfig, VitBranchConfig
from services.backbones.piip.convnext import ConvNextBranch
from services.backbones.piip.pretrained import CheckpointError, load_branch
from services.backbones.piip.vit import VitBranch

pytestmark = pytest.mark.backbones

WIDTH, HEADS, DEPTH, SIDE = 16, 2, 2, 4
State = dict[str, Tensor]


def branch(**keys: object) -> VitBranch:
    sizes = {"resolution": 32, "width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch_size": 8, "position_side": SIDE}
    return VitBranch(VitBranchConfig.model_validate(sizes | keys), 1).eval()


def timm(rows: int, patch: int = 8) -> State:
    """A vision transformer of timm, with ``rows`` of positions before the cells."""
    state = {
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(WIDTH),
        "cls_token": torch.randn(1, 1, WIDTH),
        "pos_embed": torch.randn(1, SIDE * SIDE + rows, WIDTH),
        "norm.weight": torch.randn(WIDTH),
        "norm.bias": torch.randn(WIDTH),
        "head.weight": torch.randn(5, WIDTH),
        "head.bias": torch.randn(5),
    }
    for number in range(DEPTH):
        for name, out, into in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state[f"blocks.{number}.{name}.weight"] = torch.randn(out, into) * 0.2
            state[f"blocks.{number}.{name}.bias"] = torch.randn(out)
        for name in ("norm1", "norm2"):
            state[f"blocks.{number}.{name}.weight"] = torch.randn(WIDTH)
            state[f"blocks.{number}.{name}.bias"] = torch.randn(WIDTH)
    return state


def with_scales(state: State, first: str, second: str) -> State:
    names = [f"blocks.{number}.{name}" for number in range(DEPTH) for name in (first, second)]
    return state | {name: torch.randn(WIDTH) for name in names}


def reference(state: State, pixels: Tensor, scales: tuple[str, str] | None) -> Tensor:
    """What the published network computes, from the checkpoint's own names; all tokens, the class token first."""
    cells = functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 8)
    tokens = cells.flatten(2).transpose(1, 2)
    first = state["cls_token"].expand(len(pixels), -1, -1)
    rows = state["pos_embed"].shape[1] - tokens.shape[1]
    tokens = torch.cat([first, tokens + state["pos_embed"][:, rows:]], dim=1)
    tokens = tokens.clone()
    if rows:
        tokens[:, :1] += state["pos_embed"][:, :1]
    for number in range(DEPTH):
        own = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"blocks.{number}.")}
        factors = (1, 1) if scales is None else tuple(own[name] for name in scales)

        def linear(values: Tensor, name: str, own: State = own) -> Tensor:
            return functional.linear(values, own[f"{name}.weight"], own[f"{name}.bias"])

        def norm(values: Tensor, name: str, own: State = own) -> Tensor:
            return functional.layer_norm(values, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

        query, key, value = linear(norm(tokens, "norm1"), "attn.qkv").chunk(3, dim=-1)
        query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        shares = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        tokens = tokens + factors[0] * linear((shares @ value).transpose(1, 2).flatten(2), "attn.proj")
        inner = functional.gelu(linear(norm(tokens, "norm2"), "mlp.fc1"))
        tokens = tokens + factors[1] * linear(inner, "mlp.fc2")
    return tokens


DEIT: Callable[[], State] = lambda: timm(1)  # noqa: E731
CASES: dict[str, tuple[Callable[[], State], tuple[str, str] | None]] = {
    "DeiT": (DEIT, None),
    "DeiT, distilled": (
        lambda: timm(2) | {"dist_token": torch.randn(1, 1, WIDTH), "head_dist.weight": torch.randn(5, WIDTH)},
        None,
    ),
    "DeiT III": (lambda: with_scales(timm(0), "gamma_1", "gamma_2"), ("gamma_1", "gamma_2")),
    "DINOv2": (
        lambda: with_scales(timm(1), "ls1.gamma", "ls2.gamma") | {"mask_token": torch.randn(1, WIDTH)},
        ("ls1.gamma", "ls2.gamma"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_branch_computes_what_the_published_network_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, scales = CASES[name]
    state = make()
    save_file(state, tmp_path / "weights.safetensors")
    network = branch(class_token=True)

    load_branch(network, tmp_path / "weights.safetensors")

    pixels = torch.randn(2, 3, 32, 32)
    last = network.run(network.embed(pixels), 0)
    assert last.class_token is not None
    # A distilled network's second token takes part in attention, and pyramids have no use for it.
    expected = reference(state, pixels, scales)
    torch.testing.assert_close(torch.cat([last.class_token, last.tokens], dim=1), expected, atol=1e-4, rtol=1e-4)


def test_clip_computes_what_transformers_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=32,
        patch_size=8,
    )
    theirs = CLIPVisionModel(settings).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    network = branch(
        class_token=True, embedding_norm=True, patch_bias=False, activation="quick_gelu", norm_epsilon=1e-5
    )

    load_branch(network, tmp_path / "model.safetensors")

    pixels = torch.randn(2, 3, 32, 32)
    last = network.run(network.embed(pixels), 0)
    assert last.class_token is not None
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state
    torch.testing.assert_close(torch.cat([last.class_token, last.tokens], dim=1), expected, atol=1e-4, rtol=1e-4)


def internvit() -> State:
    state = {
        "embeddings.class_embedding": torch.randn(1, 1, WIDTH),
        "embeddings.patch_embedding.weight": torch.randn(WIDTH, 3, 8, 8),
        "embeddings.patch_embedding.bias": torch.randn(WIDTH),
        "embeddings.position_embedding": torch.randn(1, SIDE * SIDE + 1, WIDTH),
    }
    for number in range(DEPTH):
        layer = f"encoder.layers.{number}"
        for name, out, into in (
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state[f"{layer}.{name}.weight"] = torch.randn(out, into)
            state[f"{layer}.{name}.bias"] = torch.randn(out)
        state[f"{layer}.attn.qkv.weight"] = torch.randn(3 * WIDTH, WIDTH)
        for name in ("norm1.weight", "norm2.weight", "attn.q_norm.weight", "attn.k_norm.weight", "ls1", "ls2"):
            state[f"{layer}.{name}"] = torch.randn(WIDTH)
    return state


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_internvit_fits_the_settings_of_the_6b_size(prefix: str, tmp_path: Path) -> None:
    stored = internvit()
    save_file({prefix + name: value for name, value in stored.items()}, tmp_path / "weights.safetensors")
    network = branch(qkv_bias=False, norm="rms_norm", query_key_norm=True, class_token=True)

    load_branch(network, tmp_path / "weights.safetensors")

    first = network.layers[0]
    assert torch.equal(first.attention.query_key_value.weight, stored["encoder.layers.0.attn.qkv.weight"])
    assert torch.equal(first.attention.query_norm.weight, stored["encoder.layers.0.attn.q_norm.weight"])
    assert torch.equal(first.scale1, stored["encoder.layers.0.ls1"])
    expected = stored["embeddings.class_embedding"] + stored["embeddings.position_embedding"][:, :1]
    assert network.class_token is not None
    assert torch.equal(network.class_token, expected)


def test_beit_brings_its_biases_of_position_and_none_for_keys(tmp_path: Path) -> None:
    stored = with_scales(timm(1), "gamma_1", "gamma_2")
    del stored["pos_embed"], stored["norm.weight"], stored["norm.bias"]
    for number in range(DEPTH):
        del stored[f"blocks.{number}.attn.qkv.bias"]
        attention = f"blocks.{number}.attn"
        stored[f"{attention}.q_bias"], stored[f"{attention}.v_bias"] = torch.randn(WIDTH), torch.randn(WIDTH)
        stored[f"{attention}.relative_position_bias_table"] = torch.randn((2 * SIDE - 1) ** 2 + 3, HEADS)
        stored[f"{attention}.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    stored["fc_norm.weight"] = torch.randn(WIDTH)
    save_file(stored, tmp_path / "weights.safetensors")
    network = branch(relative_positions=True)

    load_branch(network, tmp_path / "weights.safetensors")

    attention = network.layers[1].attention
    query, key, value = attention.query_key_value.bias.chunk(3)
    assert torch.equal(query, stored["blocks.1.attn.q_bias"])
    assert not key.any()
    assert torch.equal(value, stored["blocks.1.attn.v_bias"])
    # The published index of cell (1, 2) seen from cell (3, 0): rows of distance down, then across.
    table = stored["blocks.1.attn.relative_position_bias_table"]
    row = (3 - 1 + SIDE - 1) * (2 * SIDE - 1) + (0 - 2 + SIDE - 1)
    assert torch.equal(attention.bias((SIDE, SIDE))[:, 3 * SIDE + 0, 1 * SIDE + 2], table[row])


def test_positions_patches_and_a_missing_class_token_are_made_to_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored = timm(1, patch=14)
    save_file(stored, tmp_path / "weights.safetensors")
    network = branch(position_side=7)

    load_branch(network, tmp_path / "weights.safetensors")

    table = stored["pos_embed"][0, 1:].T.reshape(1, WIDTH, SIDE, SIDE)
    larger = functional.interpolate(table, (7, 7), mode="bicubic", align_corners=False)
    assert network.position_embedding is not None
    torch.testing.assert_close(network.position_embedding, larger)
    assert network.patch_embedding.weight.shape == (WIDTH, 3, 8, 8)
    assert network.class_token is None


def test_convnext_blocks_are_found_behind_their_down_samplings(tmp_path: Path) -> None:
    widths, depths = (8, 12, 16, 20), (1, 2, 1, 1)
    stored: State = {
        "downsample_layers.0.0.weight": torch.randn(8, 3, 4, 4),
        "downsample_layers.0.0.bias": torch.randn(8),
    }
    stored |= {f"downsample_layers.0.1.{kind}": torch.randn(8) for kind in ("weight", "bias")}
    for level in range(1, 4):
        stored |= {f"downsample_layers.{level}.0.{kind}": torch.randn(widths[level - 1]) for kind in ("weight", "bias")}
        stored[f"downsample_layers.{level}.1.weight"] = torch.randn(widths[level], widths[level - 1], 2, 2)
        stored[f"downsample_layers.{level}.1.bias"] = torch.randn(widths[level])
    for level, depth in enumerate(depths):
        for number in range(depth):
            width, block = widths[level], f"stages.{level}.{number}"
            stored[f"{block}.dwconv.weight"] = torch.randn(width, 1, 7, 7)
            stored[f"{block}.pwconv1.weight"] = torch.randn(4 * width, width)
            stored[f"{block}.pwconv1.bias"] = torch.randn(4 * width)
            stored[f"{block}.pwconv2.weight"] = torch.randn(width, 4 * width)
            for name in ("dwconv.bias", "norm.weight", "norm.bias", "pwconv2.bias", "gamma"):
                stored[f"{block}.{name}"] = torch.randn(width)
    save_file(stored | {"norm.weight": torch.randn(20), "head.bias": torch.randn(5)}, tmp_path / "weights.safetensors")
    settings = ConvNextBranchConfig(resolution=64, widths=widths, depths=depths)
    network = ConvNextBranch(settings, 1)

    load_branch(network, tmp_path / "weights.safetensors")

    # One block of the first level, a down-sampling, then the second level.
    assert torch.equal(network.blocks[3].scale, stored["stages.1.1.gamma"])
    assert torch.equal(network.blocks[1][1].weight, stored["downsample_layers.1.1.weight"])
    assert torch.equal(network.stem[1].bias, stored["downsample_layers.0.1.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.1.attn.proj.bias"), r"1 missing \(layers.1.attention.projection.bias\)"),
        (
            lambda state: state.update({"blocks.0.adapter.weight": torch.ones(1)}),
            r"unknown \(blocks.0.adapter.weight\)",
        ),
        (lambda state: state.update({"blocks.2.norm1.bias": torch.ones(16)}), r"unknown \(layers.2.norm1.bias\)"),
        (
            lambda state: state.update({"patch_embed.proj.bias": torch.ones(3)}),
            r"patch_embedding.bias \(3,\) instead of",
        ),
        (lambda state: state.pop("patch_embed.proj.weight"), r"no layout that is known here.*patch_embed"),
    ],
)
def test_errors_name_what_is_missing_or_unknown(
    change: Callable[[State], object], message: str, tmp_path: Path
) -> None:
    stored = timm(1)
    change(stored)
    save_file(stored, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_branch(branch(), tmp_path / "weights.safetensors")


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"weights.bin: is not a readable safetensors file"):
        load_branch(branch(), tmp_path / "weights.bin")
