"""A stand-in for mmcv's compiled operations where mmcv was installed without them.

mmdet only needs the module ``mmcv._ext`` to exist when it is imported: its deformable attention then runs in torch, on
GPUs too, and so does what two-stage detectors need (``torch_operations.py``). Import this module before mmdet. On a
machine with compiled operations it does nothing.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from services.grounding import torch_operations


class _MissingOperations(types.ModuleType):
    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_arguments: Any, **_keywords: Any) -> NoReturn:
            raise RuntimeError(
                f"mmcv's compiled operation {name!r} was called, but mmcv is installed without compiled operations. "
                "Build onedl-mmcv with them (see docs/architecture.md) to run this model here."
            )

        return missing


def register_stand_in() -> None:
    """Put the stand-in in place unless compiled operations are installed or it is in place already."""
    name = "mmcv._ext"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    module = _MissingOperations(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    for operation in (torch_operations.nms, torch_operations.roi_align_forward, torch_operations.roi_align_backward):
        setattr(module, operation.__name__, operation)
    sys.modules[name] = module
    # mmcv takes it for granted that whoever has a GPU has compiled operations.
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    attention.IS_CUDA_AVAILABLE = False


register_stand_in()
