"""What a run was made with: versions and machine, for its manifest."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_faithful.language_model import LanguageModel

RECORDED = (
    "sae-faithful",
    "sae-lens",
    "transformer-lens",
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "scipy",
)


def environment(model: LanguageModel) -> dict[str, Any]:
    """Model, versions, machine, device and threads, ready for JSON."""
    import torch

    return {
        "model": model.identity,
        "versions": {name: metadata.version(name) for name in RECORDED},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": model.device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }
