from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# For small_mllm, which tests import too.
sys.path.insert(0, str(Path(__file__).parent))

from small_mllm import build_model, build_tokenizer

from services.mllm.model import Mllm
from services.mllm.tokenizer import MllmTokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> MllmTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: MllmTokenizer) -> Mllm:
    """Read-only."""
    return build_model(tokenizer)
