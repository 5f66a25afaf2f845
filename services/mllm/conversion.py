"""A public InternVL checkpoint rewritten in the other layout: the authors' to transformers', or back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from services.mllm.original_config import ORIGINAL_CONFIG_FILE, original_of
from services.mllm.original_layout import to_original
from services.mllm.prompt_format import PromptFormat
from services.mllm.public_checkpoint import PublicCheckpoint, read_public
from services.mllm.tiling import IMAGENET_MEAN, IMAGENET_STD
from services.mllm.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from services.mllm.tokenizer_files import TOKENIZER_FILE
from services.runtime.weights import CONFIG_FILE, WeightsError

_VIDEO = "<video>"


@dataclass(frozen=True)
class Converted:
    """What was written."""

    layout: str
    parameters: int
    template: str


def convert(source: Path, target: Path) -> Converted:
    """Write the checkpoint in ``source`` to the new folder ``target`` in the other layout.

    Raises WeightsError when ``source`` is no checkpoint of either, when the other layout has no place for it, or when
    ``target`` holds something.
    """
    if target.exists() and any(target.iterdir()):
        raise WeightsError(f"{target} is not empty; converted checkpoints go into a folder of their own.")
    checkpoint = read_public(source)
    if checkpoint.pixel_unshuffle == "v1":
        raise WeightsError(
            f"{source}: ps_version is v1, which transformers' classes do not know. Serve the folder as it is."
        )
    write = _write_native if checkpoint.layout == "original" else _write_original
    return write(checkpoint, target)


def _write_native(checkpoint: PublicCheckpoint, target: Path) -> Converted:
    state = checkpoint.native_state()
    config = checkpoint.internvl
    config.architectures = ["InternVLForConditionalGeneration"]
    config.dtype = next(iter(state.values())).dtype
    _write_tensors(state, target)
    config.save_pretrained(target)
    _write_json(target / ORIGINAL_CONFIG_FILE, checkpoint.original_fields)
    _write_processor(checkpoint, target)
    return _converted("native", state, checkpoint)


def _write_original(checkpoint: PublicCheckpoint, target: Path) -> Converted:
    state = checkpoint.native_state()
    fields = checkpoint.original_fields or original_of(checkpoint.internvl, checkpoint.prompt)
    _write_tensors(to_original(state, checkpoint.fused_heads), target)
    _write_json(target / CONFIG_FILE, fields)
    checkpoint.tokenizer.save(str(target / TOKENIZER_FILE))
    settings = {"add_bos_token": checkpoint.prompt.bos_token is not None, "bos_token": checkpoint.prompt.bos_token}
    _write_json(target / "tokenizer_config.json", settings)
    return _converted("original", state, checkpoint)


def _converted(layout: str, state: Mapping[str, Tensor], checkpoint: PublicCheckpoint) -> Converted:
    return Converted(layout, sum(tensor.numel() for tensor in state.values()), checkpoint.prompt.template)


def _write_processor(checkpoint: PublicCheckpoint, target: Path) -> None:
    """The tokenizer with its chat template, and the image processor's settings, as transformers reads them."""
    prompt = checkpoint.prompt
    vision: Any = checkpoint.internvl.vision_config
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=checkpoint.tokenizer,
        bos_token=prompt.bos_token,
        add_bos_token=prompt.bos_token is not None,
        eos_token=prompt.shape.turn_end,
        pad_token=prompt.shape.turn_end,
        padding_side="left",
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": _VIDEO,
        },
    )
    tokenizer.chat_template = chat_template(prompt)
    tokenizer.save_pretrained(target)
    size = {"height": vision.image_size[0], "width": vision.image_size[1]}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "processor_class": "InternVLProcessor",
        "size": size,
    }
    images = {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True, "min_patches": 1}
    _write_json(target / "preprocessor_config.json", pixels | images | {"max_patches": _most_tiles(checkpoint)})
    _write_json(target / "video_preprocessor_config.json", pixels | {"video_processor_type": "InternVLVideoProcessor"})
    tokens = {"image_seq_length": checkpoint.internvl.image_seq_length, "processor_class": "InternVLProcessor"}
    _write_json(target / "processor_config.json", tokens)
    generation = {"eos_token_id": tokenizer.convert_tokens_to_ids(prompt.shape.turn_end), "max_new_tokens": 1024}
    _write_json(target / "generation_config.json", generation)


def _most_tiles(checkpoint: PublicCheckpoint) -> int:
    original = checkpoint.original
    return original.max_dynamic_patch if original is not None and original.dynamic_image_size else 1


def chat_template(prompt: PromptFormat) -> str:
    """``prompt`` in the template language of transformers' tokenizers, with their items for images and videos."""
    shape = prompt.shape
    headers = {role: "".join(shape.header(role)) for role in ("system", "user", "assistant")}
    end = shape.turn_end + shape.after_turn
    system = headers["system"] + prompt.system_message + end
    lines = ["{{ bos_token }}"] if prompt.bos_token is not None else []
    if prompt.system_message:
        lines.append(f"{{% if messages[0]['role'] != 'system' %}}{{{{ {_quoted(system)} }}}}{{% endif %}}")
    lines += [
        "{% for message in messages %}{{ " + _quoted(headers) + "[message['role']] }}",
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}",
        "{% for item in message['content'] %}",
        "{% if item['type'] == 'image' %}{{ '" + IMAGE_CONTEXT + "\\n' }}",
        "{% elif item['type'] == 'video' %}{{ '" + _VIDEO + "\\n' }}",
        "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}",
        f"{{{{ {_quoted(end)} }}}}{{% endfor %}}",
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(headers['assistant'])} }}}}{{% endif %}}",
    ]
    return "".join(lines)


def _quoted(literal: str | dict[str, str]) -> str:
    return json.dumps(literal, ensure_ascii=False)


def _write_tensors(state: Mapping[str, Tensor], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, target)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
