"""A diffusion model on disk, in diffusers' layout.

``vae/``, ``unet/`` and ``scheduler/`` are what diffusers writes and reads; ``mapper/``, ``sketcher/``, ``finder/``,
``source_encoder/`` and ``vocabulary/`` are our own, each with its sizes and a ``model.safetensors``. ``config.json``
describes the whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DConditionModel

from services.runtime.weights import CONFIG_FILE, WeightsError, load_weights, save_weights
from superlink.configuration import Section

if TYPE_CHECKING:
    from services.diffusion.model import Diffuser


class _VocabularyConfig(Section):
    """The table's shape is all there is to say."""

    concepts: int
    link_width: int


def save_parts(diffuser: Diffuser, folder: Path) -> None:
    """Write every part of ``diffuser`` to ``folder``, in the dtype that it has."""
    config = diffuser.config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    diffuser.autoencoder.save_pretrained(folder / "vae")
    diffuser.denoiser.save_pretrained(folder / "unet")
    diffuser.scheduler.save_pretrained(folder / "scheduler")
    save_weights(diffuser.mapper, folder / "mapper", config.mapper)
    save_weights(diffuser.sketcher, folder / "sketcher", config.sketcher)
    save_weights(diffuser.finder, folder / "finder", config.finder)
    save_weights(diffuser.source_encoder, folder / "source_encoder", config.source_encoder)
    vocabulary = _VocabularyConfig(concepts=config.vocabulary, link_width=config.link_width)
    save_weights(diffuser.vocabulary, folder / "vocabulary", vocabulary)


def load_parts(diffuser: Diffuser, folder: Path) -> None:
    """Fill ``diffuser`` with what ``save_parts`` wrote. Raises WeightsError when a part is missing or does not fit."""
    diffuser.autoencoder = load_autoencoder(folder)
    diffuser.denoiser = _read(UNet2DConditionModel, folder / "unet", torch_dtype=torch.float32)
    diffuser.denoiser.to(memory_format=torch.channels_last)
    diffuser.scheduler = _read(DDIMScheduler, folder / "scheduler")
    load_weights(diffuser.mapper, folder / "mapper")
    load_weights(diffuser.sketcher, folder / "sketcher")
    load_weights(diffuser.finder, folder / "finder")
    load_weights(diffuser.source_encoder, folder / "source_encoder")
    load_weights(diffuser.vocabulary, folder / "vocabulary")


def load_autoencoder(folder: Path) -> AutoencoderDC:
    """The autoencoder in ``folder/vae``. Raises WeightsError when there is none."""
    autoencoder: AutoencoderDC = _read(AutoencoderDC, folder / "vae", torch_dtype=torch.float32)
    autoencoder.to(memory_format=torch.channels_last)
    return autoencoder


def _read(kind: Any, folder: Path, **arguments: Any) -> Any:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: there is no such folder of weights. `superlink doctor` checks weights.")
    if "torch_dtype" in arguments:
        # Never a pickle, never a download.
        arguments |= {"use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        return kind.from_pretrained(folder, local_files_only=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{folder}: the weights cannot be read ({error}). `superlink doctor` checks them."
        ) from error
