"""The engine `vllm`: our calls against the signatures of the real package, and what is made of what it gives.

vLLM itself does not run here. `vllm_signatures.json` holds what its calls take; where vLLM is installed, or its source
lies where `SAE_FAITHFUL_VLLM` says (a wheel, or a folder with `vllm/`), that is held against our calls too.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pickle
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_faithful import LanguageModel, RunError, UsageError, load_plugins
from sae_faithful.data import measure_typicality
from sae_faithful_plugins.self_generated import SelfGenerated, engines
from sae_faithful_plugins.self_generated.engines.vllm import VllmSampler

HERE = Path(__file__).parent
BOS, EOS, VOCAB = 0, 1, 64
SIGNATURES = json.loads((HERE / "vllm_signatures.json").read_text())


def signature(parameters: list[dict[str, Any]]) -> inspect.Signature:
    """As the real function has it."""
    return inspect.Signature(
        [
            inspect.Parameter(
                one["name"],
                getattr(inspect.Parameter, one["kind"]),
                default=inspect.Parameter.empty if one["default"] is None else one["default"],
            )
            for one in parameters
        ]
    )


class FakeVllm:
    """A module `vllm` that takes exactly what the real one takes, and draws as the tiny Llama would."""

    def __init__(self, model: LanguageModel, signatures: dict[str, Any]) -> None:
        self.made: list[dict[str, Any]] = []
        self.params: list[dict[str, Any]] = []
        self.change: Callable[[Any], Any] = lambda reply: reply
        self.module: Any = ModuleType("vllm")
        fake = self
        init, generate = signature(signatures["LLM.__init__"]), signature(signatures["LLM.generate"])

        class LLM:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                bound = init.bind(*args, **kwargs).arguments
                # What LLM does not name goes to EngineArgs.
                beyond = bound.pop("kwargs", {})
                assert set(beyond) <= set(signatures["EngineArgs"]), sorted(beyond)
                fake.made.append({**bound, **beyond})

            def generate(self, *args: Any, **kwargs: Any) -> list[Any]:
                bound = generate.bind(*args, **kwargs).arguments
                pairs = zip(bound["prompts"], bound["sampling_params"], strict=True)
                return [fake.change(fake.draw(model, *pair)) for pair in pairs]

        def sampling_params(**given: Any) -> Any:
            assert set(given) <= set(signatures["SamplingParams"]), sorted(given)
            fake.params.append(given)
            return SimpleNamespace(**given)

        def tokens_prompt(**given: Any) -> dict[str, Any]:
            assert set(given) <= set(signatures["TokensPrompt"])
            return given

        self.module.LLM, self.module.SamplingParams, self.module.TokensPrompt = (
            LLM,
            sampling_params,
            tokens_prompt,
        )

    def draw(self, model: LanguageModel, prompt: dict[str, Any], params: Any) -> Any:
        import torch

        inner: Any = model.model.model
        generator = torch.Generator().manual_seed(params.seed)
        drawn: list[int] = []
        with torch.no_grad():
            while len(drawn) < params.max_tokens and not (drawn and drawn[-1] in params.stop_token_ids):
                ids = torch.tensor([prompt["prompt_token_ids"] + drawn])
                p = torch.softmax(inner(ids).logits[0, -1] / params.temperature, dim=-1)
                drawn.append(int(torch.multinomial(p, 1, generator=generator)))
        finish = "stop" if drawn[-1] in params.stop_token_ids else "length"
        output = SimpleNamespace(token_ids=tuple(drawn), finish_reason=finish)
        return SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[output])


@pytest.fixture
def fake(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    """vLLM as its signatures say, installed."""
    made = FakeVllm(llama, SIGNATURES)
    version = metadata.version
    monkeypatch.setitem(sys.modules, "vllm", made.module)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "0.33.0" if name == "vllm" else version(name))
    return made


def sampler(request: Any, **options: Any) -> VllmSampler:
    return VllmSampler.of(SelfGenerated(engine="vllm", **options), request)


# The real package


def real_package() -> Path | None:
    named = os.environ.get("SAE_FAITHFUL_VLLM")
    if named:
        return Path(named)
    spec = find_spec("vllm")
    return Path(str(spec.origin)).parents[1] if spec and spec.origin else None


@pytest.mark.skipif(
    real_package() is None, reason="neither vLLM nor SAE_FAITHFUL_VLLM (a wheel of it) is there"
)
def test_our_calls_fit_the_vllm_that_is_there(
    fake: FakeVllm, llama: LanguageModel, make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import vllm_signatures

    package = real_package()
    assert package is not None
    found = vllm_signatures.read(package)
    real = FakeVllm(llama, found)
    monkeypatch.setitem(sys.modules, "vllm", real.module)
    sampler(make_request(), tensor_parallel=2, gpu_memory_utilization=0.5).sample(2, 0)
    for reader, fields in (
        ({"token_ids", "finish_reason"}, found["CompletionOutput"]),
        ({"prompt_token_ids", "outputs"}, [one["name"] for one in found["RequestOutput.__init__"]]),
        ({"token_ids", "prompt_token_ids", "finish_reason"}, found["CompletionResponseChoice"]),
        ({"id", "root", "max_model_len", "owned_by"}, found["ModelCard"]),
        ({"return_token_ids", "stop_token_ids", "watermarking", "seed"}, found["CompletionRequest"]),
    ):
        assert reader <= set(fields)


def test_what_is_read_of_vllms_replies_is_what_the_signatures_have() -> None:
    assert {"token_ids", "finish_reason"} <= set(SIGNATURES["CompletionOutput"])
    assert {"prompt_token_ids", "outputs"} <= {one["name"] for one in SIGNATURES["RequestOutput.__init__"]}
    assert {"token_ids", "prompt_token_ids", "finish_reason"} <= set(SIGNATURES["CompletionResponseChoice"])
    assert {"id", "root", "max_model_len", "owned_by"} <= set(SIGNATURES["ModelCard"])
    # Left out of our calls because this is what they already are.
    assert (SIGNATURES["SamplingParams"]["top_k"], SIGNATURES["SamplingParams"]["n"]) == ("0", "1")


# Our calls


def test_the_model_is_loaded_once_with_nothing_of_its_own_generation_config(
    fake: FakeVllm, llama: LanguageModel, make_request: Callable[..., Any]
) -> None:
    one = sampler(make_request(), tensor_parallel=2, gpu_memory_utilization=0.4)
    one.sample(2, 0)
    one.sample(2, 1)
    (made,) = fake.made
    assert made == {
        "model": llama.name, "dtype": "float32", "tensor_parallel_size": 2, "trust_remote_code": False,
        "revision": None, "seed": 0, "generation_config": "vllm", "gpu_memory_utilization": 0.4,
    }  # fmt: skip
    one.close()
    one.sample(2, 0)
    assert len(fake.made) == 2


def test_every_sample_has_a_seed_of_its_own_and_the_whole_distribution(
    fake: FakeVllm, make_request: Callable[..., Any]
) -> None:
    sampler(make_request(), temperature=0.8, top_p=0.9).sample(5, 3)
    assert len({one["seed"] for one in fake.params}) == 5
    for one in fake.params:
        assert {key: value for key, value in one.items() if key != "seed"} == {
            "temperature": 0.8, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "max_tokens": 15, "stop_token_ids": [EOS], "detokenize": False,
        }  # fmt: skip


def test_a_dataset_is_the_models_own_has_a_card_and_is_read_again_without_loading(
    fake: FakeVllm, llama: LanguageModel, make_request: Callable[..., Any]
) -> None:
    source = SelfGenerated(engine="vllm", tensor_parallel=2)
    request = make_request(n_tokens=600)
    tokens = source.load(request)
    assert tokens.card["engine"] == {
        "name": "vllm", "version": "0.33.0", "tensor_parallel": 2,
        "not_determined": tokens.card["engine"]["not_determined"],
    }  # fmt: skip
    # 600 tokens are 40 samples of 15: a shard of 32, the largest that does not draw more than that, and another.
    assert tokens.card["resolved_options"] == {"batch_size": 32}
    assert abs(measure_typicality(tokens.documents(BOS), 1, llama, 600, seed=0).z) < 3
    assert any(document[-1] == EOS for document in tokens.documents(BOS))
    again = SelfGenerated(engine="vllm", tensor_parallel=2, gpu_memory_utilization=0.3).load(request)
    assert (again.rows() == tokens.rows()).all()
    assert len(fake.made) == 1


def test_the_settings_hold_what_changes_the_samples(fake: FakeVllm, make_request: Callable[..., Any]) -> None:
    request = make_request()
    one = sampler(request).settings
    assert (one["engine"], one["versions"]["vllm"], one["dtype"]) == ("vllm", "0.33.0", "float32")
    assert sampler(request, gpu_memory_utilization=0.3).settings == one
    for changes in ({"tensor_parallel": 2}, {"temperature": 2.0}, {"dtype": "bfloat16"}):
        assert sampler(request, **changes).settings != one
    assert sampler(request, dtype="bfloat16").dtype == "bfloat16"


def test_a_sampler_can_be_sent_to_another_process(fake: FakeVllm, make_request: Callable[..., Any]) -> None:
    request = make_request(language_model=LanguageModel(make_request().language_model.name))
    one = sampler(request)
    one.sample(1, 0)
    sent = pickle.loads(pickle.dumps(one))
    assert (sent.prompt_ids, sent.settings) == (one.prompt_ids, one.settings)
    assert "_llm" not in vars(sent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finish_reason": "abort"}, "ended a sample by 'abort'"),
        ({"prompt_token_ids": [BOS, BOS]}, r"read the prompt \[0\] as \[0, 0\]"),
    ],
)
def test_what_cannot_be_a_whole_sample_is_refused(
    change: dict[str, Any], message: str, fake: FakeVllm, make_request: Callable[..., Any]
) -> None:
    def lie(reply: Any) -> Any:
        vars(reply if "prompt_token_ids" in change else reply.outputs[0]).update(change)
        return reply

    fake.change = lie
    with pytest.raises(RunError, match=message):
        sampler(make_request()).sample(2, 0)


# Refusals


def test_models_that_only_this_process_has_are_refused(
    fake: FakeVllm, tiny_hooked: Any, make_request: Callable[..., Any], llama: LanguageModel
) -> None:
    given = LanguageModel("tiny", class_name="HookedTransformer", given=tiny_hooked)
    with pytest.raises(UsageError, match="cannot take a model made in code; use engine transformers"):
        sampler(make_request(language_model=given))
    random = dataclasses.replace(llama, random_init_seed=3)
    with pytest.raises(UsageError, match=r"weights drawn anew \(model_init\)"):
        sampler(make_request(language_model=random))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
def test_vllm_that_is_not_installed_is_said_before_anything_runs() -> None:
    with pytest.raises(UsageError, match=r"engine vllm is not installed: pip install 'sae-faithful\[vllm\]'"):
        load_plugins().create("source", "self_generated", {"engine": "vllm"})


def test_a_share_of_memory_that_is_none_is_refused(fake: FakeVllm) -> None:
    with pytest.raises(UsageError, match=r"gpu_memory_utilization 1.5 is not in \(0, 1\]"):
        load_plugins().create("source", "self_generated", {"engine": "vllm", "gpu_memory_utilization": 1.5})


def test_samples_are_int32(fake: FakeVllm, make_request: Callable[..., Any]) -> None:
    assert {one.dtype for one in sampler(make_request(), prompt=[5]).sample(3, 0)} == {np.dtype(np.int32)}
