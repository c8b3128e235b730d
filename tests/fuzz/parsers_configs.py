"""Readers of configs, of options on the command line, and of SAEs and models from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parser import Parser, Read, with_file

from examples import config


def of_config(examples: Path, sandbox: Path) -> list[Parser]:
    import yaml

    from sae_faithful import ExperimentConfig, load_plugins
    from sae_faithful.config import apply_overrides, named_options
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import make_plan, plan_baselines, plan_evaluators, source_from_spec

    plugins = load_plugins()
    whole = config(examples)
    small = {
        key: whole[key] for key in ("model_name", "model_class_name", "hook_name", "sae", "context_size")
    }
    small |= {"sae": {"architecture": "topk", "d_sae": 64, "k": 4}, "sources": {"own": "self_generated"}}
    file = sandbox / "config.yaml"

    def check(data: bytes) -> object:
        file.write_bytes(data)
        made = ExperimentConfig.from_file(file)
        again = ExperimentConfig.from_dict(made.to_dict())
        assert again.to_dict() == made.to_dict()
        return made

    def plan(data: bytes) -> None:
        file.write_bytes(data)
        made = ExperimentConfig.from_file(file)
        make_plan(made, plugins, LanguageModel.from_config(made, made.hook_names, None))

    def override(data: bytes) -> None:
        ExperimentConfig.from_dict(apply_overrides(small, data.decode(errors="replace").split("\n")))

    def options(data: bytes) -> None:
        name, given = named_options(data.decode(errors="replace"))
        kinds: dict[str, Callable[[], object]] = {
            "source": lambda: source_from_spec(plugins, name, {"plugin": name, **given}),
            "baseline": lambda: plan_baselines(
                _with(ExperimentConfig, small, baselines=[{name: given}]), plugins
            ),
        }
        kind = next((one for one in kinds if name in plugins.registrations(one)), None)
        kinds.get(kind or "", lambda: plan_evaluators([{name: given}], 0, plugins))()

    as_yaml = [yaml.safe_dump(one).encode() for one in (whole, small)]
    as_json = [json.dumps(one).encode() for one in (whole, small)]
    runner = json.dumps(_of_saelens(), default=str).encode()
    overrides = [
        b"sae.k=3\nlr=1e-4",
        b"sources.own.n_tokens=4096",
        b"evaluators=[ood_score]",
        b"sae_seeds=[1, 2]\nseed=2",
    ]
    named = [
        b"probing={tasks: [sst2], sparse_k: [1, 4], cs: [0.1]}",
        b"text_files={path: 'a*.txt', column: text, where: {a: 1}}",
        b"fake_features={n_tokens: 100}",
        b"pca={}",
        b"autointerp={scores: [token_set], n_features: 3, prices: [1, 2]}",
        b"self_generated={n_tokens: 5000, temperature: 0.7}",
        b"hub_dataset={path: a/b, column: [x, y]}",
        b"case_studies={n_features: 2, features: [{source: a, latent: 3}]}",
        b"ioi_patching={pairs: ioi, thresholds: [0.1, 1]}",
    ]
    where = "sae_faithful.config sae_faithful.registry"
    return [
        Parser("config, YAML", "text", as_yaml, check, 1.2, where),
        Parser("config, JSON", "json", as_json, check, 1.2, where),
        Parser("config, SAELens's", "json", [runner], check, 0.6, where),
        Parser("config to plan", "json", as_json[:1], plan, 0.5, "sae_faithful.plan"),
        Parser("--set", "text", overrides, override, 1, where),
        Parser("NAME={options}", "text", named, options, 1.5, where),
    ]


def _of_saelens() -> dict[str, Any]:
    """What SAELens writes of a config."""
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TopKTrainingSAEConfig

    sae = TopKTrainingSAEConfig(d_in=64, d_sae=96, k=8)
    return LanguageModelSAERunnerConfig(
        sae=sae, model_name="gpt2", hook_name="blocks.0.hook_resid_post", dataset_path="someone/texts",
        logger=LoggingConfig(log_to_wandb=False),
    ).to_dict()  # fmt: skip


def _with(kind: Any, fields: dict[str, Any], **more: Any) -> Any:
    return kind.from_dict({**fields, **more})


def of_saes(examples: Path, sandbox: Path) -> list[Parser]:
    from sae_faithful.directions_sae import load as load_directions
    from sae_faithful.model_source import load_tokenizer, skeleton
    from sae_faithful.pretrained import load_sae

    folders = [path.parent for path in sorted((examples / "run" / "saes").rglob("cfg.json"))][:2]
    sae, model, directions = sandbox / "sae", sandbox / "model", sandbox / "directions"
    shutil.copytree(folders[0], sae)
    shutil.copytree(examples / "model", model)
    shutil.copytree(next((examples / "run" / "baselines").rglob("cfg.json")).parent, directions)

    def of_sae(name: str) -> Read:
        def read() -> None:
            from sae_faithful.pretrained import _settings

            loaded = load_sae(str(sae), "cpu")
            _settings(["sae"], [loaded], 0, 100, None, "cpu", None)

        return with_file(sae / name, read)

    def of_model() -> None:
        skeleton(str(model), "AutoModelForCausalLM", {})

    def of_tokenizer() -> None:
        load_tokenizer(str(model), "AutoModelForCausalLM", {})

    where = "sae_faithful.pretrained"
    return [
        Parser(
            "SAE, cfg.json",
            "json",
            [(one / "cfg.json").read_bytes() for one in folders],
            of_sae("cfg.json"),
            0.7,
            where,
        ),
        Parser(
            "SAE, safetensors",
            "binary",
            [(one / "sae_weights.safetensors").read_bytes() for one in folders],
            of_sae("sae_weights.safetensors"),
            0.7,
            where,
        ),
        Parser(
            "model, config.json",
            "json",
            [(model / "config.json").read_bytes()],
            with_file(model / "config.json", of_model),
            0.3,
            "sae_faithful.model_source",
        ),
        Parser(
            "model, tokenizer.json",
            "json",
            [(model / "tokenizer.json").read_bytes()],
            with_file(model / "tokenizer.json", of_tokenizer),
            0.2,
            "sae_faithful.model_source",
        ),
        Parser(
            "model, tokenizer_config.json",
            "json",
            [(model / "tokenizer_config.json").read_bytes()],
            with_file(model / "tokenizer_config.json", of_tokenizer),
            0.2,
            "sae_faithful.model_source",
        ),
        Parser(
            "baseline, cfg.json",
            "json",
            [(directions / "cfg.json").read_bytes()],
            with_file(directions / "cfg.json", lambda: load_directions(directions, None, "cpu")),
            0.3,
            where,
        ),
    ]
