"""The command line: what it prints, its exit codes, and what it leaves behind when something is wrong."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from sae_faithful import UsageError, hookimpl, load_plugins
from sae_faithful.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from sae_faithful import PluginManager, SourceRequest, TokenSet

COMMAND = str(Path(sys.executable).parent / "sae-faithful")
VERBS = ("run", "generate", "train", "evaluate", "report", "push", "plugins")
GO_ON = "interrupted; run the same command again to go on"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""
    import sae_lens.load_model

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(sae_lens.load_model, "load_model", refuse)


def written(config: dict[str, Any], folder: Path) -> str:
    """The path of a file with this config."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def only_error(result: Result, exit_code: int) -> str:
    """The one line on stderr of a command that failed cleanly."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exit_code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with dotted keys changed."""
    from sae_faithful.config import apply_overrides

    for key, value in changes.items():
        config = apply_overrides(config, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])
    return config


# What is wrong, as dotted keys of the config; what the line must say: the value, and the choices or the limit.
BAD_INPUT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown plugin": (
        {"sources.faithful.plugin": "self_generatd"},
        ["sources.faithful", "unknown source 'self_generatd'", "installed: hub_dataset, self_generated, text_files"],
    ),
    "unknown plugin of a dataset": (
        {"datasets.web": "web_page"},
        ["datasets.web", "unknown source 'web_page'", "installed: hub_dataset, self_generated, text_files"],
    ),
    "misspelt plugin as dataset_path": (
        {"sources": {}, "dataset_path": "self_generatd"},
        ["unknown source 'self_generatd' in dataset_path", "did you mean self_generated?"],
    ),
    "unknown evaluator": (
        {"evaluators": ["l00"]},
        ["unknown evaluator 'l00'", "installed: autointerp, ", "fake_features, ", "reconstruction, "],
    ),
    "unknown option of a source": (
        {"sources.faithful.temprature": 1},
        ["sources.faithful: unknown option 'temprature'", "did you mean temperature"],
    ),
    "unknown option of an evaluator": (
        {"evaluators": [{"fake_features": {"tokens": 3}}]},
        ["unknown option 'tokens'", "options of evaluator 'fake_features'", "n_tokens"],
    ),
    "unknown config field": ({"training_token": 5}, ["config field 'training_token'", "training_tokens"]),
    "unknown field of the SAE": ({"sae.kk": 5}, ["field of topk 'sae.kk'", "sae.k"]),
    "unknown architecture": (
        {"sae.architecture": "top_k"},
        ["unknown architecture 'top_k'", "did you mean topk", "installed: ", "jumprelu", "standard"],
    ),
    "a number of the wrong type": ({"lr": "fast"}, ["lr = 'fast'", "valid number"]),
    "an SAE field of the wrong type": ({"sae.k": "few"}, ["sae.k = 'few'", "valid integer"]),
    "an SAE that is no mapping": ({"sae": "topk"}, ["sae = 'topk'", "expected fields"]),
    "a source option of the wrong type": (
        {"sources.faithful.n_tokens": "many"},
        ["source 'self_generated', n_tokens = 'many'", "valid integer"],
    ),
    "a source option out of range": (
        {"sources.faithful.temperature": 0},
        ["source 'self_generated'", "temperature 0.0 is not above 0"],
    ),
    "an evaluator option of the wrong type": (
        {"evaluators": [{"fake_features": {"n_tokens": "many"}}]},
        ["evaluator 'fake_features', n_tokens = 'many'", "valid integer"],
    ),
    "duplicate seeds": ({"sae_seeds": [0, 1, 1]}, ["sae_seeds [0, 1, 1]", "duplicate seeds"]),
    "d_in that contradicts the model": (
        {"sae.d_in": 63},
        ["sae.d_in is 63", "64 activations at 'model.layers.0'"],
    ),
    "a context longer than the model's": (
        {"context_size": 65},
        ["context_size 65", "longer than the 64 tokens"],
    ),
    "a buffer smaller than the training batch": (
        {"n_batches_in_buffer": 3},
        ["n_batches_in_buffer × context_size = 48 tokens", "train_batch_size_tokens = 64"],
    ),
    "fewer tokens than one row": (
        {"sources.faithful.n_tokens": 15},
        ["sources.faithful: n_tokens 15", "one row of context_size 16"],
    ),
    "a hook that does not exist": (
        {"hook_name": "model.layers.7"},
        ["unknown hook_name 'model.layers.7'", "did you mean", "model.layers.0", "model.layers.1"],
    ),
    "one of several hooks that does not exist": (
        {"hook_names": ["model.layers.0", "model.layer.1"]},
        ["unknown hook_name 'model.layer.1'", "did you mean", "model.layers.1"],
    ),
    "a field that the multi-SAE runner lacks": (
        {"compile_sae": True},
        ["compile_sae", "multi-SAE runner lacks it", "2 SAEs"],
    ),
    "sources of different amounts": (
        {"sources.other": {"plugin": "self_generated", "n_tokens": 800}},
        ["same number of distinct tokens", "faithful: 1600", "other: 800"],
    ),
    "a file that no path matches": (
        {"datasets.code": {"plugin": "text_files", "path": "nowhere/*.py"}},
        ["datasets.code", "no file matches 'nowhere/*.py'"],
    ),
    "a model that does not exist": ({"model_name": "no/such-model"}, ["model_name 'no/such-model' cannot be read"]),
    "a model class that does not exist": (
        {"model_class_name": "GPT"},
        ["unknown model_class_name 'GPT'", "AutoModelForCausalLM, HookedTransformer, HookedMamba"],
    ),
    "what SAELens itself refuses": ({"seqpos_slice": [16, None]}, ["slice (16, None)", "empty range"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line_before_any_weights_load_and_leaves_nothing(
    changes: dict[str, Any],
    says: list[str],
    tiny_config: dict[str, Any],
    tmp_path: Path,
    cache: Path,
    no_weights: None,
) -> None:
    line = only_error(call("run", written(merged(tiny_config, changes), tmp_path)), 2)
    for part in says:
        assert part in line
    assert not Path(tiny_config["output_path"]).exists()
    assert not cache.exists()


@pytest.mark.parametrize("verb", ["run", "generate", "train"])
def test_every_verb_on_a_config_refuses_bad_input(
    verb: str, tiny_config: dict[str, Any], tmp_path: Path, no_weights: None
) -> None:
    path = written(tiny_config, tmp_path)
    line = only_error(call(verb, path, "--output", str(tmp_path / "out"), "--set", "context_size=65"), 2)
    assert "context_size 65 is longer than the 64 tokens" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "lr"], "--set 'lr' is not KEY=VALUE"),
        (["--set", "lr.high=1"], "--set lr.high: 'lr' holds a single value"),
        (["--set", "sae={k: 3"], "--set sae={k: 3: '{k: 3' is not a YAML value"),
        (["--set", "sae.k=few"], "sae.k = 'few'"),
    ],
)
def test_a_bad_set_is_one_line(
    arguments: list[str], says: str, tiny_config: dict[str, Any], tmp_path: Path, no_weights: None
) -> None:
    assert says in only_error(call("run", written(tiny_config, tmp_path), *arguments), 2)
    assert not Path(tiny_config["output_path"]).exists()


def test_a_config_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml' does not exist" in only_error(call("run", str(tmp_path / "nowhere.yaml")), 2)


def test_a_restriction_to_a_plugin_that_is_not_installed_names_those_that_are(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_weights: None
) -> None:
    monkeypatch.setenv("SAE_FAITHFUL_PLUGINS", "self_generated,zzz")
    line = only_error(call("run", written(tiny_config, tmp_path)), 2)
    assert "unknown plugin 'zzz'; SAE_FAITHFUL_PLUGINS may name: " in line
    assert "self_generated" in line
    assert "zzz" in only_error(call("plugins"), 2)


def test_a_plugin_that_is_left_out_is_unknown(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_weights: None
) -> None:
    monkeypatch.setenv("SAE_FAITHFUL_PLUGINS", "text_files")
    line = only_error(call("run", written(tiny_config, tmp_path)), 2)
    assert "unknown source 'self_generated'" in line
    assert line.endswith("installed: text_files")


def test_debug_shows_the_traceback(tiny_config: dict[str, Any], tmp_path: Path, no_weights: None) -> None:
    path = written({**tiny_config, "context_size": 65}, tmp_path)
    result = call("--debug", "run", path)
    assert isinstance(result.exception, UsageError)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_made_with_another_setting_names_the_keys_and_is_left_alone(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    path = written(tiny_config, tmp_path)
    folder = Path(tiny_config["output_path"])
    made = call("train", path)
    assert made.exit_code == 0, made.stderr
    assert made.stdout == f"SAEs: {folder / 'saes'}\n"
    before = contents(folder)
    assert "saes/faithful/model.layers.0/base/seed1/sae_weights.safetensors" in before

    line = only_error(call("run", path, "--set", "sources.faithful.temperature=0.5", "--set", "seed=8"), 2)
    assert "finished step 'data/faithful' made with other settings" in line
    assert "seed: 7 there, 8 now" in line
    assert "sources.faithful.temperature: 1.0 there, 0.5 now" in line

    line = only_error(call("run", path, "--set", "lr=2e-3"), 2)
    assert "finished step 'saes/faithful/model.layers.0/base/seed0'" in line
    assert "lr: 0.001 there, 0.002 now" in line
    assert contents(folder) == before


def test_a_report_without_a_run_is_refused(tmp_path: Path) -> None:
    line = only_error(call("report", str(tmp_path / "nowhere")), 2)
    assert str(tmp_path / "nowhere") in line
    assert "no finished run" in line
    assert not (tmp_path / "nowhere").exists()


def test_every_verb_is_known_here() -> None:
    assert tuple(main.commands) == VERBS


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_has_an_example_that_the_command_line_understands(verb: str | None) -> None:
    result = call(*([verb] if verb else []), "--help")
    assert result.exit_code == 0
    assert "Example: sae-faithful" in result.stdout
    command = main if verb is None else main.commands[verb]
    (example,) = (line for line in (command.help or "").splitlines() if line.strip().startswith("Example: "))
    program, name, *arguments = shlex.split(example.partition("Example: ")[2])
    assert program == "sae-faithful"
    assert name == (verb or "run")
    # Parses the arguments and options, or fails.
    main.commands[name].make_context(name, arguments)


def test_the_config_in_the_examples_exists() -> None:
    assert (Path(__file__).parent.parent / "examples" / "quickstart.yaml").is_file()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["generate", "--help"], ["plugins"]])
def test_help_and_plugins_import_neither_torch_nor_saelens(arguments: list[str]) -> None:
    program = f"""
import sys
from sae_faithful.cli import main
try:
    main({arguments!r})
except SystemExit as exit:
    assert exit.code == 0, exit.code
heavy = {{"torch", "sae_lens", "transformers", "transformer_lens", "datasets"}} & set(sys.modules)
sys.exit(f"imported: {{sorted(heavy)}}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "self_generated" in result.stdout or "Example" in result.stdout


def test_plugins_lists_kind_name_origin_and_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_faithful

    monkeypatch.setenv("SAE_FAITHFUL_PLUGINS", "text_files,shared_features")
    result = call("plugins")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.split()[:4] == ["source", "text_files", "sae-faithful", sae_faithful.__version__]
    assert "Local files" in first
    assert second.split()[:4] == ["evaluator", "shared_features", "sae-faithful", sae_faithful.__version__]
    assert "Shared Feature Ratio" in second
    # The columns stand under each other.
    assert first.index("sae-faithful") == second.index("sae-faithful")


@dataclass
class Rows:
    """A source that gives 120 good rows but for what goes wrong in row 3."""

    flaw: str = "none"

    def load(self, request: SourceRequest) -> TokenSet:
        """Rows of ids 3 to 62, all different."""
        from datasets import Dataset

        from sae_faithful import TokenSet

        rows = [[0, *(3 + (17 * i + 5 * j + i * j) % 60 for j in range(15))] for i in range(120)]
        if self.flaw == "short":
            rows[3] = rows[3][:-1]
        if self.flaw == "long":
            rows[3] = [*rows[3], 5]
        if self.flaw == "beyond":
            rows[3][7] = 64
        if self.flaw == "negative":
            rows[3][7] = -2
        if self.flaw == "few":
            rows = rows[:10]
        if self.flaw == "none at all":
            rows = []
        documents = [[i] * len(row) for i, row in enumerate(rows)]
        return TokenSet(Dataset.from_dict({"input_ids": rows, "document": documents}))


class RowsPlugin:
    """Registers it."""

    @hookimpl
    def register_sources(self, register: Callable[[str, type], None]) -> None:
        register("rows", Rows)


@pytest.fixture
def rows_plugin(monkeypatch: pytest.MonkeyPatch) -> PluginManager:
    """The command line with the plugin above installed."""
    manager = load_plugins()
    manager.register(RowsPlugin())
    monkeypatch.setattr("sae_faithful.experiment.load_plugins", lambda: manager)
    return manager


def with_rows(config: dict[str, Any], flaw: str) -> dict[str, Any]:
    return {**config, "sources": {"odd": {"plugin": "rows", "flaw": flaw}}, "training_tokens": 1_600}


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ("short", "row 3 has 15 tokens, expected 16"),
        ("long", "row 3 has 17 tokens, expected 16"),
        ("beyond", "row 3 has the token id 64, outside the vocabulary of 64"),
        ("negative", "row 3 has the token id -2, outside the vocabulary of 64"),
        # Of 1,600 tokens, 10 rows of 16.
        ("few", "gave 160 distinct tokens of the 1,600 that every source must give"),
        ("none at all", "gave fewer tokens than one row of 16"),
    ],
)
def test_a_source_that_gives_unusable_rows_is_named_with_the_row(
    flaw: str,
    says: str,
    tiny_config: dict[str, Any],
    tmp_path: Path,
    rows_plugin: PluginManager,
    no_weights: None,
) -> None:
    result = call("--quiet", "generate", written(with_rows(tiny_config, flaw), tmp_path))
    line = only_error(result, 1)
    assert "source plugin 'rows' (for 'odd')" in line
    assert says in line
    assert not list(Path(tiny_config["output_path"]).glob("data/*"))


def test_a_source_that_gives_usable_rows_is_taken(
    tiny_config: dict[str, Any], tmp_path: Path, rows_plugin: PluginManager
) -> None:
    result = call("--quiet", "generate", written(with_rows(tiny_config, "none"), tmp_path))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"data: {Path(tiny_config['output_path']) / 'data' / 'odd'}\n"


def test_a_loss_that_is_not_finite_names_the_sae_and_the_step(
    tiny_config: dict[str, Any], tmp_path: Path, rows_plugin: PluginManager
) -> None:
    path = written(with_rows(tiny_config, "none"), tmp_path)
    result = call("--quiet", "train", path, "--set", "lr=1e30")
    assert result.exit_code == 1
    # Progress bars share stderr.
    line = result.stderr.splitlines()[-1]
    # The loss of step 0 is that of the initial weights. Adam then moves each by about lr: latents and decoder are of
    # order 1e30, their product of order 1e60, beyond float32, at step 1.
    assert line == (
        "error: the loss of SAE odd/model.layers.0/base/seed0 is not finite at training step 1; lower lr"
    )
    assert "Traceback" not in result.stderr
    saes = Path(tiny_config["output_path"]) / "saes"
    assert not list(saes.rglob("step.json"))

    # What was finished stays: with a usable rate, the same folder is gone on with.
    again = call("--quiet", "train", path)
    assert again.exit_code == 0, again.stderr
    seeds = [folder.parent.name for folder in sorted(saes.rglob("step.json"))]
    assert seeds == ["seed0", "seed1"]


def interrupt(arguments: list[str], when: Callable[[bytes], bool], folder: Path) -> tuple[int, bytes]:
    """Start the command, send it SIGINT once `when` says so of its stderr; its exit code and stderr."""
    log = folder / "stderr"
    with log.open("wb") as stderr:
        # A shell's background jobs ignore SIGINT, and hand that on to what they start.
        process = subprocess.Popen(
            [COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=stderr,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            while process.poll() is None and not when(log.read_bytes()):
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            code = process.wait()
        finally:
            process.kill()
    return code, log.read_bytes()


def test_an_interrupted_run_says_so_and_goes_on_where_it_was(
    tiny_config: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    # Enough to be in the middle of: 40 shards of about 240 tokens, 2,300 training steps.
    changes = {
        "sources.faithful.batch_size": 16, "sources.faithful.n_tokens": 9_600, "training_tokens": 150_000,
        "sources.faithful.max_new_tokens": 15,
    }  # fmt: skip
    arguments = ["run", written(merged(tiny_config, changes), tmp_path)]
    folder = Path(tiny_config["output_path"])

    code, stderr = interrupt(
        arguments, lambda _: bool(list(cache.glob("self_generated/*/shard-000000.sha256"))), tmp_path
    )
    assert code == 130, stderr
    assert stderr.decode().splitlines()[-1] == GO_ON
    assert b"Traceback" not in stderr
    (first,) = cache.glob("self_generated/*/shard-000000.arrow")
    drawn = first.stat().st_mtime_ns
    assert not (folder / "data" / "faithful").exists()

    code, stderr = interrupt(arguments, lambda said: b"saes/faithful: training 2 SAEs" in said, tmp_path)
    assert code == 130, stderr
    assert stderr.decode().splitlines()[-1] == GO_ON
    assert b"Traceback" not in stderr
    assert (folder / "data" / "faithful" / "step.json").exists()
    assert first.stat().st_mtime_ns == drawn
    assert not list(folder.glob("saes/**/step.json"))

    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "data/faithful: reused" in done.stderr
    assert f"report: {folder / 'report.md'}" in done.stdout.splitlines()
    assert (folder / "report.md").is_file()
    assert len(list(folder.glob("saes/**/step.json"))) == 2


def test_a_real_process_says_one_line_too(tiny_config: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    path = written({**tiny_config, "hook_name": "model.layers.7"}, tmp_path)
    result = subprocess.run([COMMAND, "run", path], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: unknown hook_name 'model.layers.7' (did you mean model.layers.")
    assert not Path(tiny_config["output_path"]).exists()
    assert not cache.exists()
