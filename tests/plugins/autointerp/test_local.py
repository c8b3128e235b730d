"""A tiny transformers model as explainer and simulator, against its own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import LanguageModel
from sae_faithful_plugins.autointerp.assistants import MALFORMED, TOO_LONG, Cloze, Message, Question
from sae_faithful_plugins.autointerp.cache import ReplyCache
from sae_faithful_plugins.autointerp.local import LocalAssistant
from sae_faithful_plugins.autointerp.scoring import Missing
from sae_faithful_plugins.autointerp.simulate import cloze

QUESTION = Question((Message("user", "Say something."),), 8)


@pytest.fixture(scope="module")
def digits(save_model: Callable[..., str]) -> str:
    return save_model([])


@pytest.fixture
def load(tmp_path: Path, llama: LanguageModel) -> Callable[..., LocalAssistant]:
    return lambda name: LocalAssistant.load(name, llama, ReplyCache(tmp_path / "replies"))


def test_the_scale_goes_to_10_where_10_is_one_token(
    digits: str, save_model: Callable[..., str], load: Callable[..., LocalAssistant], tiny_llama: str
) -> None:
    assert load(digits).highest_number() == 9
    assert load(save_model([("1", "0")])).highest_number() == 10
    # The tiny Llama's tokenizer knows no number.
    assert load(tiny_llama).highest_number() is None


def test_log_probabilities_are_the_models_own_at_every_place(
    digits: str, load: Callable[..., LocalAssistant]
) -> None:
    import torch

    assistant = load(digits)
    one = cloze("rivers", [" the", " Rhine", "é"], 9)
    (found,) = assistant.weigh([one])
    assert not isinstance(found, Missing)
    # By a whole forward: bytes are tokens, so what is before a place is as many tokens as it has bytes.
    prompt = assistant._prompt(one.messages) + one.answer
    tokenizer: Any = assistant.model.tokenizer
    ids = tokenizer(prompt)["input_ids"]
    logits = assistant.model.logits(torch.tensor([ids]))[0]
    start = len(prompt) - len(one.answer)
    for place, weights in zip(one.places, found, strict=True):
        before = len(prompt[: start + place].encode())
        assert tokenizer.decode(ids[before : before + 7]) == "unknown"
        expected = torch.log_softmax(logits[before - 1], dim=-1)
        for n in range(10):
            (number,) = tokenizer(str(n), add_special_tokens=False)["input_ids"]
            assert weights[str(n)] == pytest.approx(float(expected[number]), abs=1e-4)
    assert len(found) == 3


def test_a_second_run_runs_no_model(
    digits: str, load: Callable[..., LocalAssistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cloze("rivers", [" the"], 9)
    first = load(digits)
    replies = first.answer([QUESTION, Question(QUESTION.messages, 8, attempt=1)]), first.weigh([one])
    # Greedy at first, drawn at the second try.
    assert replies[0][0] != replies[0][1]
    again = load(digits)
    monkeypatch.setattr(LocalAssistant, "_inner", property(lambda self: pytest.fail("the model was run")))
    assert (
        again.answer([QUESTION, Question(QUESTION.messages, 8, attempt=1)]),
        again.weigh([one]),
    ) == replies


def test_sampling_depends_on_the_question_alone(digits: str, llama: LanguageModel, tmp_path: Path) -> None:
    import torch

    drawn = Question(QUESTION.messages, 8, attempt=1)
    replies: list[Any] = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        replies += LocalAssistant.load(digits, llama, ReplyCache(tmp_path / str(seed))).answer([drawn])
        # And takes no random numbers from anyone.
        assert torch.equal(state, torch.get_rng_state())
    assert replies[0] == replies[1]


def test_prompts_that_do_not_fit_are_no_reply(
    save_model: Callable[..., str], load: Callable[..., LocalAssistant]
) -> None:
    assistant = load(save_model([], context=64))
    assert assistant.answer([QUESTION]) != [Missing(TOO_LONG)]
    assert assistant.answer([Question((Message("user", "x" * 60),), 8)]) == [Missing(TOO_LONG)]
    assert assistant.weigh([cloze("rivers", [" the"], 9)]) == [Missing(TOO_LONG)]


def test_a_place_inside_a_token_is_no_place(
    save_model: Callable[..., str], load: Callable[..., LocalAssistant]
) -> None:
    assistant = load(save_model([("u", "n")]))
    assert assistant.weigh([Cloze(QUESTION.messages, "a\tunknown", (3,))]) == [Missing(MALFORMED)]


def test_the_chat_template_is_used_and_a_refused_system_message_goes_to_the_user(
    digits: str, load: Callable[..., LocalAssistant]
) -> None:
    assistant = load(digits)
    messages = (Message("system", "S"), Message("user", "U"))
    assert assistant._prompt(messages) == "System:\nS\n\nUser:\nU\n\nAssistant:\n"
    tokenizer: Any = assistant.model.tokenizer
    tokenizer.chat_template = (
        "<bos>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert assistant._prompt(messages) == "<bos>[user]S\n\nU[assistant]"
    # One BOS: the template's.
    assert list(assistant._encode("<bos>a")["input_ids"]).count(0) == 1


def test_the_measured_model_is_not_loaded_again(
    tiny_llama: str, digits: str, llama: LanguageModel, load: Callable[..., LocalAssistant]
) -> None:
    assert load(tiny_llama).model is llama
    assert load(digits).model is not llama
