"""Small random InternVL checkpoints in their authors' layout, every name written out as their code has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

WIDTH, LAYERS, FFN = 32, 2, 48
TEXT_WIDTH, TEXT_FFN, HEADS, KEY_VALUE_HEADS = 32, 40, 4, 2
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
TURN_TOKENS = {
    "internlm2-chat": ("<|endoftext|>", "<s>", "<|im_end|>", "<|im_start|>"),
    "Hermes-2": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    "phi3-chat": ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "internvl2_5": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
}
# The language model that each template is tried with.
ARCHITECTURES = {
    "internlm2-chat": "InternLM2ForCausalLM",
    "Hermes-2": "LlamaForCausalLM",
    "phi3-chat": "Phi3ForCausalLM",
    "internvl2_5": "Qwen2ForCausalLM",
}


def write_original(folder: Path, template: str, is_6b: bool = False, **changes: Any) -> dict[str, Tensor]:
    """Write a checkpoint, with ``changes`` to its configuration; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder, template)
    config = original_config(template, vocab_size, is_6b) | changes
    (folder / "config.json").write_text(json.dumps(config))
    state = original_state(ARCHITECTURES[template], vocab_size, is_6b)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


def write_tokenizer(folder: Path, template: str) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["find the dog", "user system assistant"] * 9,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[*TURN_TOKENS[template], *IMAGE_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if template == "phi3-chat":
        greedy = [AddedToken(token, special=True, rstrip=True) for token in TURN_TOKENS[template][1:]]
        tokenizer.add_special_tokens(greedy)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"add_bos_token": False}
    if template == "internlm2-chat":
        settings = {"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def original_config(template: str, vocab_size: int, is_6b: bool) -> dict[str, Any]:
    llm: dict[str, Any] = {
        "architectures": [ARCHITECTURES[template]],
        "model_type": "whatever",
        "vocab_size": vocab_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if template == "phi3-chat" else KEY_VALUE_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        # What the authors' files are full of.
        "bad_words_ids": None,
        "num_beams": 1,
        "torch_dtype": "bfloat16",
    }
    if template == "internlm2-chat":
        llm["bias"] = False
    if template == "phi3-chat":
        factors = [1.0] * (TEXT_WIDTH // HEADS // 2)
        llm["rope_scaling"] = {"type": "su", "short_factor": factors, "long_factor": factors}
        llm |= {"original_max_position_embeddings": 256, "sliding_window": 4096, "rope_theta": 10_000.0}
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "template": template,
        "ps_version": "v2",
        "select_layer": -1,
        "downsample_ratio": 0.5,
        "force_image_size": 56,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "llm_config": llm,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": FFN,
            "image_size": 56,
            "patch_size": 14,
            "qkv_bias": not is_6b,
            "qk_normalization": is_6b,
            "norm_type": "rms_norm" if is_6b else "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "initializer_factor": 0.1,
        },
    }


def original_state(architecture: str, vocab_size: int, is_6b: bool) -> dict[str, Tensor]:
    shapes = _vision_shapes(is_6b) | _projector_shapes() | _language_shapes(architecture, vocab_size)
    generator = torch.Generator().manual_seed(7)
    return {
        name: (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        + 0.2 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def _vision_shapes(is_6b: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, WIDTH),
        "vision_model.embeddings.position_embedding": (1, 17, WIDTH),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        start = f"vision_model.encoder.layers.{layer}."
        shapes |= {
            f"{start}attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"{start}attn.proj.weight": (WIDTH, WIDTH),
            f"{start}attn.proj.bias": (WIDTH,),
            f"{start}norm1.weight": (WIDTH,),
            f"{start}norm2.weight": (WIDTH,),
            f"{start}ls1": (WIDTH,),
            f"{start}ls2": (WIDTH,),
            f"{start}mlp.fc1.weight": (FFN, WIDTH),
            f"{start}mlp.fc1.bias": (FFN,),
            f"{start}mlp.fc2.weight": (WIDTH, FFN),
            f"{start}mlp.fc2.bias": (WIDTH,),
        }
        if is_6b:
            shapes |= {f"{start}attn.q_norm.weight": (WIDTH,), f"{start}attn.k_norm.weight": (WIDTH,)}
        else:
            shapes |= {
                f"{start}attn.qkv.bias": (3 * WIDTH,),
                f"{start}norm1.bias": (WIDTH,),
                f"{start}norm2.bias": (WIDTH,),
            }
    return shapes


def _projector_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "mlp1.0.weight": (4 * WIDTH,),
        "mlp1.0.bias": (4 * WIDTH,),
        "mlp1.1.weight": (TEXT_WIDTH, 4 * WIDTH),
        "mlp1.1.bias": (TEXT_WIDTH,),
        "mlp1.3.weight": (TEXT_WIDTH, TEXT_WIDTH),
        "mlp1.3.bias": (TEXT_WIDTH,),
    }


def _language_shapes(architecture: str, vocab_size: int) -> dict[str, tuple[int, ...]]:
    width, head = TEXT_WIDTH, TEXT_WIDTH // HEADS
    if architecture == "InternLM2ForCausalLM":
        shapes: dict[str, tuple[int, ...]] = {
            "language_model.model.tok_embeddings.weight": (vocab_size, width),
            "language_model.model.norm.weight": (width,),
            "language_model.output.weight": (vocab_size, width),
        }
        for layer in range(LAYERS):
            start = f"language_model.model.layers.{layer}."
            shapes |= {
                f"{start}attention.wqkv.weight": ((HEADS + 2 * KEY_VALUE_HEADS) * head, width),
                f"{start}attention.wo.weight": (width, width),
                f"{start}attention_norm.weight": (width,),
                f"{start}ffn_norm.weight": (width,),
                f"{start}feed_forward.w1.weight": (TEXT_FFN, width),
                f"{start}feed_forward.w2.weight": (width, TEXT_FFN),
                f"{start}feed_forward.w3.weight": (TEXT_FFN, width),
            }
        return shapes
    shapes = {
        "language_model.model.embed_tokens.weight": (vocab_size, width),
        "language_model.model.norm.weight": (width,),
        "language_model.lm_head.weight": (vocab_size, width),
    }
    for layer in range(LAYERS):
        start = f"language_model.model.layers.{layer}."
        shapes |= {
            f"{start}input_layernorm.weight": (width,),
            f"{start}post_attention_layernorm.weight": (width,),
            f"{start}self_attn.o_proj.weight": (width, width),
            f"{start}mlp.down_proj.weight": (width, TEXT_FFN),
        }
        if architecture == "Phi3ForCausalLM":
            shapes |= {
                f"{start}self_attn.qkv_proj.weight": (3 * width, width),
                f"{start}mlp.gate_up_proj.weight": (2 * TEXT_FFN, width),
            }
            continue
        rows = {"q": width, "k": KEY_VALUE_HEADS * head, "v": KEY_VALUE_HEADS * head}
        shapes |= {f"{start}self_attn.{part}_proj.weight": (size, width) for part, size in rows.items()}
        shapes |= {f"{start}mlp.{part}_proj.weight": (TEXT_FFN, width) for part in ("gate", "up")}
        if architecture == "Qwen2ForCausalLM":
            shapes |= {f"{start}self_attn.{part}_proj.bias": (size,) for part, size in rows.items()}
    return shapes
