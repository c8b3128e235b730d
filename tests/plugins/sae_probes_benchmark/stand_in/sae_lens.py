"""Stands in for SAELens, whose import takes 10 s: reads the ReLU SAEs of these tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


class SAE:
    def __init__(self, encoder: torch.Tensor) -> None:
        self.encoder = encoder

    @classmethod
    def load_from_disk(cls, path: str, device: str) -> SAE:
        assert json.loads((Path(path) / "cfg.json").read_text())["architecture"] == "standard"
        return cls(load_file(Path(path) / "sae_weights.safetensors", device=device)["W_enc"])

    def eval(self) -> SAE:
        return self

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        return (activations @ self.encoder).relu()
