"""FaithfulSAE on SmolLM2-135M in pieces of some minutes, for a GPU machine that is there for short times only.

    python examples/faithfulsae_smollm2.py --minutes 9         or: make faithfulsae-smollm2 MINUTES=9
    python examples/faithfulsae_smollm2.py --list              which stages there are, and which are done

The recipe, faithfulsae_smollm2.yaml, in stages in the order of their worth. Each is an ordinary `sae-faithful run`,
which is stopped in time and gone on with by the next call. Whatever is worth keeping is in the folder KEEP (`--keep`):

    KEEP/RUN/         an ordinary run folder without saes/ and tokens, as its last finished stage left it:
                      results.jsonl, verdicts.jsonl, manifest.json, config.json, timings.json, report.md, report.html,
                      data/NAME/{card.json, typicality.json}, references/, results/EVALUATOR/; left_out.json names
                      what was too large (features.parquet). `sae_faithful.read_run(KEEP/RUN)` reads it. RUN is
                      layer_9, layer_19: six sources, all of the recipe's tokens; first three seeds, then five
                      untrained_layer_9, untrained_layer_19: the same sizes on a model of random weights
                      tasks_layer_9: a seventh source that has fewer tokens, and all with as many as that one
    KEEP/timings.jsonl
                      what each step took, a line each time that it was done
    KEEP/stages.json  the finished stages, each with its config's hash, when, seconds
    KEEP/calls.jsonl  one line a call: when, seconds, what it did
    KEEP/texts/       generated text and the other model, packed; a call unpacks what its machine lacks

Where a machine is lost its weights are, and what is trained again then is whatever a stage that is not done needs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kept import (
    keep_folder,
    keep_run,
    keep_shards,
    keep_timings,
    link_texts,
    restore_folder,
    restore_shards,
    write_json,
)

from sae_faithful.hashing import hash_settings

HERE = Path(__file__).parent
RECIPE = HERE / "faithfulsae_smollm2.yaml"
PAPER = ("shared_features", "fake_features", "ood_score", "reconstruction")
"""Evaluators that come first; `probing`, which takes long on a CPU, is a stage of its own, and so are all others."""
FIRST_SEEDS = 3
TASKS = "tasks"
TASK_TABLES = ("36_sciq*", "4[12346]_*", "47_reasoning*", "5[0-2]_*", "54_cs*", "55_open*", "86_social*", "88_glue*",
               "89_glue*", "9[01]_glue*", "93_glue*", "95_toxic*", "37_arith*")  # fmt: skip
"""Questions, choices and pairs of sentences, as models are asked: 2.18 million tokens."""
TASK_TOKENS = 2_150_000
TASK_ROWS = 200_000
"""Shuffled at once, as for `natural`: more than there are."""
SECONDS_TO_STOP = 20
"""A run that was interrupted ends its step; after so many more it is killed, which costs what was half written."""
SECONDS_TO_BEGIN = 30
"""With less time left no stage is begun: to import and to load a model takes as long."""
WITHOUT_PLAN = "import logging; logging.getLogger('sae_faithful.experiment').setLevel('WARNING'); "
TINY = {
    "device": "cpu", "context_size": 32, "training_tokens": 4_096, "train_batch_size_tokens": 256,
    "n_batches_in_buffer": 16, "store_batch_size_prompts": 8, "lr_warm_up_steps": 0, "lr_decay_steps": 0,
    "typicality_tokens": 300, "sae_seeds": [0, 1, 2], "sae.d_sae": 128, "sae.k": 8, "sources.own.n_tokens": 3_200,
    # Short files: a tenth is held out where one ends.
    "sources.code.path": "package/torch/torch/_export/db/examples/*.py",
    **{f"sources.{name}.batch_size": 32 for name in ("own", "chat", "shuffled", "other_model")},
    "evaluators": [
        {"shared_features": {"encoder": False, "cross_source": False, "null_draws": 2}},
        {"fake_features": {"n_tokens": 640, "n_contexts": 1}},
        {"ood_score": {"reference": "own", "n_tokens": 100, "n_vectors": 100, "n_unigrams": 400}},
        {"reconstruction": {"ce_tokens": 32, "bos_ce_tokens": 32}},
        {"probing": {"data": "sae_probes", "tasks": ["cola"], "max_examples": 40, "max_tokens": 8, "sparse_k": [4],
                     "cs": [0.01, 0.1]}},
        {"polysemanticity": {"n_tokens": 320, "n_features": 8}},
        {"autointerp": {"n_features": 2, "n_fragments": 16, "fragment_tokens": 8}},
        {"ioi_patching": {"n_pairs": 4, "selection_pairs": 2, "candidates": 4, "thresholds": [0.1], "comparisons": []}},
        {"top_contexts": {"n_latents": 1}},
    ],
}  # fmt: skip
"""A try of everything on a CPU: its numbers mean nothing."""


@dataclass(frozen=True)
class Stage:
    """One `sae-faithful run`; stages of one `run` share its folder, and a later one extends it."""

    name: str
    run: str
    config: dict[str, Any]
    texts_of: str
    """The run that has made the same texts before, if it is there."""

    @property
    def hash(self) -> str:
        return hash_settings(self.config)


def stages_of(recipe: dict[str, Any], first_seeds: int = FIRST_SEEDS) -> list[Stage]:
    """All stages, in the order in which they are worth doing."""
    hooks: list[str] = recipe["hook_names"]
    few, every = recipe["sae_seeds"][:first_seeds], recipe["sae_seeds"]
    names = [next(iter(one)) if isinstance(one, dict) else one for one in recipe["evaluators"]]
    of_paper = [name for name in names if name in PAPER]
    probed = [name for name in names if name in (*PAPER, "probing")]
    layers = [f"layer_{re.findall(r'[0-9]+', hook)[0]}" for hook in hooks]

    def stage(
        kind: str, i: int, seeds: list[int], wanted: list[str], base: dict[str, Any], label: str
    ) -> Stage:
        config = {**copy.deepcopy(base), "hook_names": [hooks[i]], "sae_seeds": seeds}
        config["evaluators"] = [
            one for one, name in zip(recipe["evaluators"], names, strict=True) if name in wanted
        ]
        return Stage(f"{kind}{layers[i]}/{label}", kind + layers[i], config, kind + layers[0])

    untrained, tasks = of_untrained_model(recipe), with_tasks(recipe)
    n_few, n_every = f"{len(few)}_seeds", f"{len(every)}_seeds"
    both = range(len(hooks))
    return [
        *(stage("", i, few, wanted, recipe, n_few + more)
          for i in both for wanted, more in ((of_paper, ""), (probed, "_probing"))),
        *(stage("", i, every, probed, recipe, n_every) for i in both),
        *(stage("untrained_", i, few, probed, untrained, n_few) for i in both),
        stage("tasks_", 0, few, probed, tasks, n_few),
        *(stage("", i, every, names, recipe, "cunningham2023") for i in both),
    ]  # fmt: skip


def of_untrained_model(recipe: dict[str, Any]) -> dict[str, Any]:
    """The control: random weights, on natural text and on the text of the trained model."""
    own = {**recipe["sources"]["own"], "generator": recipe["model_name"]}
    natural = {name: source for name, source in recipe["sources"].items() if name == "natural"}
    return {**recipe, "model_init": "random", "sources": {"own": own, **natural}}


def with_tasks(recipe: dict[str, Any]) -> dict[str, Any]:
    """All sources and one more, each with as many distinct tokens as that one has."""
    sources = copy.deepcopy(recipe["sources"])
    sources["own"]["n_tokens"] = min(TASK_TOKENS, sources["own"]["n_tokens"])
    paths = [f"package/sae-probes/sae_probes/data/cleaned_data/{name}" for name in TASK_TABLES]
    sources[TASKS] = {
        "plugin": "text_files",
        "column": "prompt",
        "path": paths,
        "shuffle_buffer": TASK_ROWS,
    }
    return {**recipe, "sources": sources}


@dataclass
class Call:
    """One piece of the work: what is there, and how long there is."""

    work: Path
    keep: Path
    stop_at: float
    cache: Path
    did: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def left(self) -> float:
        return self.stop_at - time.monotonic()

    @property
    def finished(self) -> dict[str, Any]:
        """Finished stages by name."""
        path = self.keep / "stages.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def is_done(self, stage: Stage) -> bool:
        return self.finished.get(stage.name, {}).get("hash") == stage.hash

    def begin(self) -> None:
        """Have on this machine what was kept of others."""
        restore_folder(self.keep / "texts" / "other_model.tar.xz", self.work / "other_model")
        restore_shards(self.keep / "texts", self.cache)

    def do(self, stage: Stage, *, remove: bool) -> bool:
        """Run one stage; whether it is done. Then its small files are kept."""
        run = self.work / stage.run
        # The plan with its times costs some seconds of measuring: it is made for a run that begins.
        program = f"{WITHOUT_PLAN if run.exists() else ''}from sae_faithful.cli import main; main()"
        link_texts(self.work / stage.texts_of, run)
        config = self.work / "configs" / f"{stage.name.replace('/', '-')}.json"
        write_json(config, stage.config)
        command = [sys.executable, "-c", program, "run", str(config), "--output", str(run)]
        try:
            finished = self.run_in_time(stage.name, command)
        finally:
            keep_timings(run, stage.name, self.keep / "timings.jsonl")
        if not finished:
            return False
        keep_run(run, self.keep / stage.run)
        seconds = sum(one["seconds"] for one in self.did if one["what"] == stage.name)
        entry = {"hash": stage.hash, "at": now(), "seconds_of_last_call": seconds}
        write_json(self.keep / "stages.json", {**self.finished, stage.name: entry})
        if remove:
            shutil.rmtree(run)
        return True

    def run_in_time(self, what: str, command: list[str]) -> bool:
        """Run a command, interrupt it when time is up; whether it ended well.

        Raises:
            SystemExit: it failed.
        """
        say(f"{what}: {self.left / 60:.1f} minutes left")
        begun = time.monotonic()
        environment = {**os.environ, "SAE_FAITHFUL_CACHE": str(self.cache)}
        # A session of its own: a Ctrl-C reaches it once, from here.
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        code = self._wait(process)
        outcome = (
            "interrupted" if self.interrupted and code != 0 else "done" if code == 0 else f"failed ({code})"
        )
        self.did.append({"what": what, "seconds": round(time.monotonic() - begun, 1), "outcome": outcome})
        if outcome.startswith("failed"):
            raise SystemExit(code if code > 0 else 1)
        return code == 0

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        for signal_sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                return process.wait(SECONDS_TO_STOP if self.interrupted else max(0.0, self.left))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self.interrupted = True
                process.send_signal(signal_sent)
        return process.wait()

    def end(self, begun: float) -> None:
        """Keep what the next machine would have to make again, and say what was done."""
        if (self.work / "other_model" / "training.json").exists():
            keep_folder(self.work / "other_model", self.keep / "texts" / "other_model.tar.xz")
        keep_shards(self.cache, self.keep / "texts")
        line = {"at": now(), "seconds": round(time.monotonic() - begun, 1), "did": self.did}
        self.keep.mkdir(parents=True, exist_ok=True)
        with (self.keep / "calls.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def recipe_from(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The recipe with what the command line changes; names and values are checked by the runs."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    changes = [*TINY.items()] if arguments.tiny else []
    changes.append(("sources.other_model.generator", str(work / "other_model")))
    given = [override.partition("=") for override in arguments.overrides]
    changes += [(key, yaml.safe_load(value)) for key, _, value in given]
    # As `sae-faithful run --set` does it, whose module takes ten seconds to import.
    for key, value in changes:
        *parents, last = key.split(".")
        target = recipe
        for parent in parents:
            target = target[parent]
        target[last] = value
    return recipe


def train_other_model(call: Call, recipe: dict[str, Any], *, tiny: bool) -> bool:
    """The model whose text is the source `other_model`; whether it is there."""
    folder = call.work / "other_model"
    if (folder / "training.json").exists():
        return True
    command = [sys.executable, str(HERE / "train_small_model.py"), "--output", str(folder)]
    command += ["--model", recipe["model_name"], "--device", recipe["device"], *(["--tiny"] if tiny else [])]
    return call.run_in_time("other_model", command) and (folder / "training.json").exists()


def say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--work", type=Path, default=Path("runs/faithfulsae_smollm2"), help="run folders, with weights"
    )
    made.add_argument("--keep", type=Path, default=Path("runs/faithfulsae_smollm2_kept"), help="what is kept")
    made.add_argument("--minutes", type=float, default=9.0, help="stop so that all is done within these")
    made.add_argument("--reserve", type=float, default=40.0, help="seconds of them that packing may take")
    made.add_argument("--stages", default="", help="only those whose name matches this regular expression")
    made.add_argument("--first-seeds", type=int, default=FIRST_SEEDS, help="seeds of the first stages")
    made.add_argument(
        "--remove", action="store_true", help="remove a run with its weights when nothing needs it"
    )
    made.add_argument("--tiny", action="store_true", help="a try of everything on a CPU")
    made.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    made.add_argument("--list", action="store_true", help="name the stages and end")
    return made


def main() -> None:
    """Do what there is time for."""
    arguments = parser().parse_args()
    begun = time.monotonic()
    # Relative as given: paths are part of what a run is made with.
    work: Path = arguments.work
    cache = Path(os.environ.get("SAE_FAITHFUL_CACHE") or (work / "cache").absolute())
    call = Call(work, arguments.keep, begun + 60 * arguments.minutes - arguments.reserve, cache)
    recipe = recipe_from(arguments, work)
    stages = [
        one for one in stages_of(recipe, arguments.first_seeds) if re.search(arguments.stages, one.name)
    ]
    if arguments.list:
        for one in stages:
            say(f"{'done' if call.is_done(one) else '    '} {one.name}")
        return
    # SIGINT too: in the background of a script it is ignored, and what is started here would ignore it as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    call.begin()
    try:
        if train_other_model(call, recipe, tiny=arguments.tiny):
            for i, stage in enumerate(stages):
                if call.interrupted or call.left < SECONDS_TO_BEGIN:
                    break
                later = {name for one in stages[i + 1 :] for name in (one.run, one.texts_of)}
                remove = arguments.remove and stage.run not in later
                if not call.is_done(stage) and not call.do(stage, remove=remove):
                    break
    finally:
        call.end(begun)
    done = sum(call.is_done(one) for one in stages)
    say(
        f"{done} of {len(stages)} stages done" + ("" if done == len(stages) else "; the same command goes on")
    )
    say(f"kept: {call.keep}")


if __name__ == "__main__":
    main()
