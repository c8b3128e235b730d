"""SAEs in groups: what fits, what is said, and that every weight is as if all were trained together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from sae_faithful import ExperimentConfig, UsageError, load_plugins, run
from sae_faithful.groups import PROCESS, RESERVE, groups_of
from sae_faithful.language_model import LanguageModel
from sae_faithful.memory import parameters_of, training_bytes, weights_of
from sae_faithful.plan import make_plan
from sae_faithful.progress import size
from tests.test_checkpoints import STEPS, Killed, assert_same, kill_at, saved

WITH_NORM = {
    "variants": {"plain": {}, "normed": {"normalize_activations": "expected_average_only_in"}},
    "n_batches_for_norm_estimate": 4,
}


def planned(tiny_config: dict[str, Any], **changes: Any) -> tuple[Any, ExperimentConfig, LanguageModel]:
    config = ExperimentConfig.from_dict({**tiny_config, **changes})
    model = LanguageModel.from_config(config, config.hook_names, None)
    return make_plan(config, load_plugins(), model).saes, config, model


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory of this machine, in bytes that are left for SAEs."""

    def leave(n_bytes: int, model: LanguageModel) -> None:
        total = (n_bytes + PROCESS + weights_of(model)) / (1 - RESERVE) + 1
        monkeypatch.setattr("sae_faithful.groups.device_memory", lambda _: total)

    return leave


@pytest.mark.parametrize(
    ("n", "room_for", "sizes"),
    [(5, 5, [5]), (5, 4, [4, 1]), (5, 3, [3, 2]), (5, 2, [2, 2, 1]), (5, 1, [1] * 5), (7, 3, [3, 3, 1])],
)
def test_as_few_groups_as_fit(
    tiny_config: dict[str, Any], memory: Any, n: int, room_for: int, sizes: list[int]
) -> None:
    saes, config, model = planned(tiny_config, sae_seeds=list(range(n)))
    memory(training_bytes(saes[:room_for], config), model)
    found = groups_of(saes, config, model)
    assert [len(group) for group in found.groups] == sizes
    assert [sae for group in found.groups for sae in group] == list(saes)
    # What is left after an interruption is divided as before.
    for done in range(1, len(sizes)):
        left = [sae for group in found.groups[done:] for sae in group]
        assert groups_of(left, config, model).groups == found.groups[done:]


def test_what_is_left_of_saes_of_unequal_size_is_divided_as_before(
    tiny_config: dict[str, Any], memory: Any
) -> None:
    variants = {"large": {"d_sae": 4_096}, "small": {"d_sae": 512}}
    saes, config, model = planned(tiny_config, sae_seeds=[0, 1], variants=variants)
    memory(training_bytes(saes[:2], config) - 1, model)
    groups = groups_of(saes, config, model).groups
    # Equal parts of the last three would be two groups where all that is left fits into one.
    assert [len(group) for group in groups] == [1, 3]
    assert groups_of(saes[1:], config, model).groups == groups[1:]


def test_monitors_need_one_more_copy_of_every_sae(tiny_config: dict[str, Any]) -> None:
    saes, config, _ = planned(tiny_config, sae_seeds=[0, 1, 2])
    watched = planned(tiny_config, sae_seeds=[0, 1, 2], monitors=["reconstruction"])[1]
    more = training_bytes(saes, watched) - training_bytes(saes, config)
    assert more == 4 * sum(parameters_of(sae) for sae in saes)


def test_the_plan_says_so_and_an_sae_that_does_not_fit_alone_is_named(
    tiny_config: dict[str, Any], memory: Any
) -> None:
    saes, config, model = planned(tiny_config, sae_seeds=[0, 1, 2])
    memory(training_bytes(saes, config), model)
    assert groups_of(saes, config, model).lines == []
    one, every = training_bytes(saes[:1], config), training_bytes(saes, config)
    memory(training_bytes(saes[:2], config), model)
    (line,) = groups_of(saes, config, model).lines
    of_memory = f"({size(every)} of {size(training_bytes(saes[:2], config))})"
    assert line == (
        f"3 SAEs do not fit beside the model {of_memory}: 2 groups of 2 and 1 over identical data, "
        "the model runs twice"
    )
    memory(one - 1, model)
    found = groups_of(saes, config, model)
    assert found.lines[0].endswith("3 groups of 1, 1 and 1 over identical data, the model runs 3 times")
    assert found.lines[1].startswith("one SAE in training may not fit beside the model (")


def test_saes_at_once_is_taken_at_its_word(tiny_config: dict[str, Any], memory: Any) -> None:
    saes, config, model = planned(tiny_config, sae_seeds=[0, 1, 2], saes_at_once=2)
    assert groups_of(saes, config, model).lines == [
        "3 SAEs, 2 at once: 2 groups of 2 and 1 over identical data, the model runs twice"
    ]
    memory(0, model)
    found = groups_of(saes, config, model)
    assert [len(group) for group in found.groups] == [2, 1]
    assert found.lines[1].startswith("2 SAEs in training may not fit beside the model")
    with pytest.raises(UsageError, match="saes_at_once 0 is not positive"):
        planned(tiny_config, saes_at_once=0)


@pytest.mark.parametrize(
    ("at_once", "changes"),
    [
        (2, {"hook_names": ["model.layers.0", "model.layers.1"]}),
        (3, WITH_NORM),
        (1, {**WITH_NORM, "prefetch_llm_batches": 2}),
    ],
    ids=["hooks", "norm", "each alone"],
)
def test_weights_do_not_depend_on_the_groups(
    tiny_config: dict[str, Any], tmp_path: Path, at_once: int, changes: dict[str, Any]
) -> None:
    together = ExperimentConfig.from_dict({**tiny_config, **changes})
    run(together, output=tmp_path / "together", until="saes")
    apart = ExperimentConfig.from_dict({**tiny_config, **changes, "saes_at_once": at_once})
    run(apart, output=tmp_path / "apart", until="saes")
    assert_same(tmp_path / "together", tmp_path / "apart")
    # The same steps: the folder of the one is finished for the other.
    before = saved(tmp_path / "apart").keys()
    run(together, output=tmp_path / "apart", until="saes")
    assert saved(tmp_path / "apart").keys() == before


def test_an_sae_that_is_added_sees_the_batches_that_the_first_ones_saw(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    """The one that estimates a norm, and so takes batches from the stream, is finished already."""
    config = ExperimentConfig.from_dict({**tiny_config, **WITH_NORM})
    run(config, output=tmp_path / "together", until="saes")
    run(config, output=tmp_path / "again", until="saes")
    place = tmp_path / "again/saes/faithful/model.layers.0/plain"
    for path in place.rglob("*"):
        path.unlink() if path.is_file() else None
    run(config, output=tmp_path / "again", until="saes")
    assert_same(tmp_path / "together", tmp_path / "again")


@pytest.mark.parametrize(
    ("killed_at", "changes"),
    [(17, {}), (32 * 2 + 17, {}), (17, WITH_NORM)],
    ids=["in the first", "in the second", "norm"],
)
def test_a_killed_group_goes_on_from_its_own_checkpoint(
    tiny_config: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    killed_at: int,
    changes: dict[str, Any],
) -> None:
    seeds = {"sae_seeds": [0, 1]} if changes else {"sae_seeds": [0, 1, 2, 3]}
    config = ExperimentConfig.from_dict(
        {**tiny_config, **seeds, **changes, "n_checkpoints": 4, "saes_at_once": 2}
    )
    together = ExperimentConfig.from_dict({**tiny_config, **seeds, **changes})
    run(together, output=tmp_path / "together", until="saes")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, killed_at + 17)
        run(config, output=tmp_path / "killed", until="saes")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "sae_faithful.checkpoints"):
        steps = kill_at(patch, 10_000)
        run(config, output=tmp_path / "killed", until="saes")
    assert "going on after" in caplog.text
    groups_left = 2 if killed_at == 17 else 1
    assert 0 < len(steps) < STEPS * 2 * groups_left
    assert_same(tmp_path / "together", tmp_path / "killed")
    assert len(list((tmp_path / "killed/checkpoints").iterdir())) == 2
