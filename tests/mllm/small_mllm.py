"""Small real parts: a tokenizer trained on a few sentences and randomly initialised models with two routes."""

from __future__ import annotations

import torch

from services.mllm.config import LanguageSize, MllmConfig
from services.mllm.model import Mllm
from services.mllm.super_link import Route
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.towers import VisionSize

SENTENCES = (
    "Find the dog.",
    "Here is the dog, and the cat.",
    "How many dogs are there? There are 3.",
    "图中有小狗吗？找到小狗和猫。",
    "Detect: dog, cat, the leftmost dog",
    "user assistant observation system",
)
ROUTES = (
    Route(token="[DET]", decoder="detection", queries=4, width=24),  # noqa: S106
    # A second decoder that takes one vector a query, with a group size of its own.
    Route(token="[GEN]", decoder="diffusion", queries=6, width=20, pooled=False),  # noqa: S106
)


def build_model(tokenizer: MllmTokenizer, seed: int = 0, **fields: object) -> Mllm:
    torch.manual_seed(seed)
    sizes: dict[str, object] = {
        "routes": ROUTES,
        "tile_size": 64,
        "vision": VisionSize(stem_channels=8, hidden_size=32, layers=2, heads=2, intermediate_size=48),
        "language": LanguageSize(
            hidden_size=48, layers=2, heads=4, key_value_heads=2, intermediate_size=64, max_positions=512
        ),
    }
    return Mllm(MllmConfig.for_tokenizer(tokenizer, **(sizes | fields))).eval()


def build_tokenizer() -> MllmTokenizer:
    return MllmTokenizer.train(SENTENCES * 20, 420, {route.token: route.queries for route in ROUTES})
