from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from sae_lens import StandardSAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes.sae import TrainingSAEConfig

from sae_faithful import hookimpl
from sae_faithful.architectures import register_architectures
from sae_faithful.interfaces import UsageError
from sae_faithful.registry import PluginManager


class PlantedSAE(StandardTrainingSAE):
    """An architecture planted by a test."""


@dataclass
class PlantedConfig(StandardTrainingSAEConfig):
    planted_field: float = 0.5

    @classmethod
    def architecture(cls) -> str:
        return "planted"

    def get_inference_config_class(self) -> type[StandardSAEConfig]:
        return StandardSAEConfig


@pytest.fixture(autouse=True)
def registry_put_back() -> Any:
    before = dict(SAE_TRAINING_CLASS_REGISTRY)
    yield
    SAE_TRAINING_CLASS_REGISTRY.clear()
    SAE_TRAINING_CLASS_REGISTRY.update(before)


def offering(**architectures: tuple[Any, Any]) -> PluginManager:
    class Plugin:
        @hookimpl
        def register_architectures(self, register: Any) -> None:
            for name, classes in architectures.items():
                register(name, lambda classes=classes: classes, "planted")

    manager = PluginManager()
    manager.register(Plugin())
    return manager


def test_a_registered_name_works_in_a_plain_saelens_config() -> None:
    assert register_architectures(offering(planted=(PlantedSAE, PlantedConfig))) == ["planted"]
    assert get_sae_training_class("planted") == (PlantedSAE, PlantedConfig)
    config = TrainingSAEConfig.from_dict(
        {"architecture": "planted", "d_in": 4, "d_sae": 8, "planted_field": 2.0}
    )
    assert isinstance(config, PlantedConfig)
    assert config.planted_field == 2.0


def test_registering_again_is_harmless() -> None:
    plugins = offering(planted=(PlantedSAE, PlantedConfig))
    register_architectures(plugins)
    once = dict(SAE_TRAINING_CLASS_REGISTRY)
    assert register_architectures(plugins) == ["planted"]
    assert once == SAE_TRAINING_CLASS_REGISTRY


@pytest.mark.parametrize("classes", [(PlantedSAE, PlantedConfig), (PlantedSAE, StandardTrainingSAEConfig)])
def test_a_name_that_saelens_has_is_refused_and_its_owner_named(classes: tuple[Any, Any]) -> None:
    before = dict(SAE_TRAINING_CLASS_REGISTRY)
    with pytest.raises(UsageError) as error:
        register_architectures(offering(standard=classes))
    assert str(error.value) == (
        "architecture 'standard' of (registered in code) is already registered with SAELens "
        "by sae_lens.saes.standard_sae"
    )
    assert before == SAE_TRAINING_CLASS_REGISTRY


def test_one_name_with_two_config_classes_is_refused() -> None:
    register_architectures(offering(planted=(PlantedSAE, PlantedConfig)))
    with pytest.raises(UsageError, match=r"architecture 'planted' .* is already registered with SAELens by "):
        register_architectures(offering(planted=(PlantedSAE, StandardTrainingSAEConfig)))
    assert get_sae_training_class("planted") == (PlantedSAE, PlantedConfig)


def test_without_architectures_nothing_is_registered() -> None:
    before = dict(SAE_TRAINING_CLASS_REGISTRY)
    assert register_architectures(PluginManager()) == []
    assert before == SAE_TRAINING_CLASS_REGISTRY
