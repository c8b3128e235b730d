"""An environment that holds stand-ins for sae-probes and SAELens, so that the worker itself is what is tested."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_faithful_plugins.sae_probes_benchmark.environment import VARIABLE

STAND_IN = Path(__file__).parent / "stand_in"
# The worker is run by its path, as the interpreter would, but with the stand-ins in front of what is installed.
INTERPRETER = """#!{python}
import runpy, sys
sys.path.insert(0, {site!r})
sys.argv = [argument for argument in sys.argv[1:] if argument not in ("-I", "-u")]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def executable(path: Path, text: str) -> Path:
    """A script that can be run."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_environment(folder: Path, version: str, datasets: dict[str, pd.DataFrame]) -> Path:
    """The interpreter of an environment with those datasets."""
    site = folder / "site"
    shutil.copytree(STAND_IN, site, ignore=shutil.ignore_patterns("__pycache__"))
    distribution = site / f"sae_probes-{version}.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sae-probes\nVersion: {version}\n")
    data = site / "sae_probes" / "data"
    (data / "cleaned_data").mkdir(parents=True)
    for name, table in datasets.items():
        table.to_csv(data / "cleaned_data" / f"{name}.csv.zst", index=False)
    kinds = dict.fromkeys(datasets, "Binary Classification") | {"9_year": "Continuous Data"}
    files = {
        "Dataset save name": [f"cleaned_data/{name}.csv" for name in kinds],
        "Data type": list(kinds.values()),
    }
    pd.DataFrame(files).to_csv(data / "probing_datasets_MASTER.csv.zst", index=False)
    return executable(folder / "python", INTERPRETER.format(python=sys.executable, site=str(site)))


@pytest.fixture(autouse=True)
def kept_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failures leave behind goes where the test's own files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Set one up and name it in the variable."""
    made = 0

    def make(datasets: dict[str, pd.DataFrame], version: str = "0.4.2") -> Path:
        nonlocal made
        made += 1
        folder = tmp_path / f"environment{made}"
        folder.mkdir()
        python = make_environment(folder, version, datasets)
        monkeypatch.setenv(VARIABLE, str(python))
        return python

    return make


@pytest.fixture
def byte_llama(tmp_path: Path) -> Any:
    """A random Llama with two layers, 64 wide, that reads any text: its tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from sae_faithful import LanguageModel

    letters = ["<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path / "byte_llama"
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>").save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0,
            initializer_range=0.15,
        )
    ).save_pretrained(folder)  # fmt: skip
    return LanguageModel(str(folder), hooks=("model.layers.0", "model.layers.1"))
