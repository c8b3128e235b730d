"""Shards in the cache: each with a seed of its own, written whole, so that an interruption costs one at most."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_faithful import Progress, RunError, SeenDocuments, Trial, Work, derive_seed, hash_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sae_faithful import SourceRequest
    from sae_faithful_plugins.self_generated.sampling import Sampler

log = logging.getLogger("sae_faithful.self_generated")

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
TRIAL_TOKENS = 4
LIKELY_BATCH = 128
"""For an estimate, before `auto` has chosen; no more samples are drawn to make one."""
WORTHWHILE = 1.1
"""A larger batch must be this much faster: it costs memory, and a shard is what an interruption loses."""
MOST_REPEATS = 256
"""After so many repeated samples in a row no more are drawn: repeats are dropped, so it might never end."""


PARTIAL = ".partial-"
SECONDS_OF_PARTIALS = 24 * 3_600
"""A file that nobody has written to for so long is of a process that was killed."""


@dataclass(frozen=True)
class ShardCache:
    """The shards of one sampler, batch size and seed; shard i is the same whoever draws it, and when."""

    sampler: Sampler
    batch_size: int
    seed: int
    cache_dir: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What determines every byte of the shards."""
        return {**self.sampler.settings, "batch_size": self.batch_size, "seed": self.seed}

    @property
    def engine(self) -> dict[str, Any]:
        """Who drew, for the card; `seen`: what the shards' engine said of itself while it drew them, each once."""
        seen: list[dict[str, Any]] = []
        for path in sorted(self.folder.glob("engine-*.json")):
            with contextlib.suppress(ValueError):  # a damaged file says nothing
                seen.append(json.loads(path.read_text(encoding="utf-8")))
        return {**self.sampler.engine, **({"seen": seen} if seen else {})}

    @property
    def folder(self) -> Path:
        """Where the shards are."""
        return _folder(self.cache_dir) / hash_settings(self.settings)

    def documents(self, n_tokens: int) -> Iterator[np.ndarray]:
        """Documents of shard 0, 1, ...; shards that are not in the cache are drawn as they are needed.

        They end only when the model has nothing new to say: at a low temperature, say, or in a few tokens.
        """
        settings = self.folder / "settings.json"
        if not settings.exists():
            _write_whole(settings, lambda path: path.write_text(json.dumps(self.settings, indent=2)))
        _remove_old_partials(self.folder)
        # A cache that can only be read may hold all that is needed: SQLite has a place of its own.
        digests = _partial(self.folder / "seen") if os.access(self.folder, os.W_OK) else None
        repeats = 0
        with (
            SeenDocuments(digests) as seen,
            Progress("generating", n_tokens, "tokens") as progress,
        ):
            for index in count():
                documents = self.shard(index)
                if digests is not None:
                    digests.touch()  # it is in use, however long this takes
                # A shard is drawn whole: in its middle no rate would be true.
                progress.update(sum(len(document) + 1 for document in documents))
                for document in documents:
                    yield document
                    repeats = 0 if seen.number(document) is None else repeats + 1
                if repeats >= MOST_REPEATS:
                    log.warning("the last %d samples all repeat earlier ones: there are no more", repeats)
                    return

    def path(self, index: int) -> Path:
        """Where one shard is, once it has been drawn."""
        return self.folder / f"shard-{index:06d}.arrow"

    def drawn(self, index: int) -> bool:
        """Whether one shard is in the cache; it may be damaged, and is then drawn again by who reads it."""
        return self.path(index).exists() and _checksum_file(self.path(index)).exists()

    def shard(self, index: int) -> list[np.ndarray]:
        """Documents of one shard, from the cache or drawn now."""
        path = self.path(index)
        if path.exists():
            content = path.read_bytes()
            if _checksum(content, path.name) == _kept_checksum(path):
                return _read_documents(content)
            log.warning("%s does not match its checksum; it is drawn again", path)
        documents = self.sampler.sample(self.batch_size, derive_seed(self.seed, "self_generated", index))
        self._note(self.sampler.observed)
        _write_shard(path, _as_arrow(documents))
        return documents

    def _note(self, observed: dict[str, Any]) -> None:
        path = self.folder / f"engine-{hash_settings(observed)}.json"
        if observed and not path.exists():
            _write_whole(path, lambda partial: partial.write_text(json.dumps(observed, indent=2)))


def generation_work(asked: int | Literal["auto"], sampler: Sampler, request: SourceRequest) -> Work:
    """What `documents` will draw if every sample becomes as long as it may, and what it costs to find a batch size."""
    size = asked if asked != "auto" else _kept_batch_size(sampler, request)
    tries = [] if size is not None else _sizes(sampler, request)
    likely = size or min(LIKELY_BATCH, tries[-1])
    longest = sampler.max_new_tokens + len(sampler.prompt_ids)
    n_shards = -(-request.n_tokens // (likely * longest))
    shards = ShardCache(sampler, likely, request.seed, request.cache_dir)
    to_draw = sum(not shards.path(index).exists() for index in range(n_shards))
    if sampler.batches_itself:
        # To try it would be to start it, or to ask a server that may not run yet.
        return Work(at_least=to_draw > 0)
    tokens = to_draw * likely * sampler.max_new_tokens + 2 * TRIAL_TOKENS * sum(tries)
    # Another model's weights are not loaded for an estimate: this one's speed, and it is at least that.
    other = sampler.model is not request.language_model
    short = replace(
        sampler, model=request.language_model, max_new_tokens=min(TRIAL_TOKENS, sampler.max_new_tokens)
    )
    samples = min(likely, LIKELY_BATCH)
    trial = Trial(run=lambda: short.sample(samples, seed=0), times=tokens / (samples * short.max_new_tokens))
    return Work(trials=[trial] if tokens else [], at_least=other)


def resolve_batch_size(asked: int | Literal["auto"], sampler: Sampler, request: SourceRequest) -> int:
    """The batch size to use; what `auto` found is kept, so that a resumed run draws the same samples."""
    if asked != "auto":
        return asked
    kept = _kept_batch_size(sampler, request)
    if kept is not None:
        return kept
    sizes = _sizes(sampler, request)
    # Such an engine draws as many at once as it can: all that a shard may have.
    rates = dict.fromkeys(sizes[-1:], 0.0) if sampler.batches_itself else _measure(sizes, sampler)
    best = pick_batch_size({size: rate * _wanted(size, sampler, request) for size, rate in rates.items()})
    if not sampler.batches_itself:
        measured = {size: round(rate) for size, rate in rates.items()}
        log.info("batch_size auto: %s tokens/s; taking %d", measured, best)
    _write_whole(
        _batch_size_file(sampler, request),
        lambda partial: partial.write_text(json.dumps({"batch_size": best, "tokens_per_s": rates})),
        replacing=False,
    )
    # Another run may have measured meanwhile: both draw as the first one says.
    return _kept_batch_size(sampler, request) or best


def _batch_size_file(sampler: Sampler, request: SourceRequest) -> Path:
    return _folder(request.cache_dir) / f"batch-size-{hash_settings(sampler.settings)}.json"


def _kept_batch_size(sampler: Sampler, request: SourceRequest) -> int | None:
    path = _batch_size_file(sampler, request)
    if not path.exists():
        return None
    try:
        return int(json.loads(path.read_text())["batch_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}); it says which batch size the samples in the cache were drawn in: set "
            "batch_size of the source to that of the run's config.json, or delete the file to measure again"
        ) from error


def _sizes(sampler: Sampler, request: SourceRequest) -> list[int]:
    # A batch that draws more than was asked for is wasted.
    enough = max(BATCH_SIZES[0], request.n_tokens // sampler.max_new_tokens)
    return [size for size in BATCH_SIZES if size <= enough]


def _wanted(size: int, sampler: Sampler, request: SourceRequest) -> float:
    """The share of the tokens in shards of so many samples, each as long as it may be, that was asked for."""
    shard = size * (sampler.max_new_tokens + len(sampler.prompt_ids))
    return request.n_tokens / (shard * -(-request.n_tokens // shard))


def pick_batch_size(rates: dict[int, float]) -> int:
    """The smallest batch size that no larger one beats by `WORTHWHILE`."""
    return min(
        size
        for size, rate in rates.items()
        if all(rates[larger] <= WORTHWHILE * rate for larger in rates if larger > size)
    )


def _measure(sizes: list[int], sampler: Sampler) -> dict[int, float]:
    """Tokens per second of short samples at each size, as long as they fit and get faster."""
    import dataclasses

    import torch

    trial = dataclasses.replace(sampler, max_new_tokens=min(TRIAL_TOKENS, sampler.max_new_tokens))
    trial.sample(sizes[0], seed=0)  # the first call pays for what is set up once
    rates: dict[int, float] = {}
    slower = 0
    for size in sizes:
        try:
            # The better of two: a machine that was busy for a moment would decide otherwise.
            seconds = min(_seconds(trial, size) for _ in range(2))
        except (torch.OutOfMemoryError, MemoryError):
            break
        rate = size * trial.max_new_tokens / seconds
        slower = slower + 1 if rates and rate < WORTHWHILE * max(rates.values()) else 0
        rates[size] = rate
        if slower == 2:
            break
    return rates


def _seconds(sampler: Sampler, size: int) -> float:
    start = time.perf_counter()
    sampler.sample(size, seed=0)
    return time.perf_counter() - start


def _folder(cache_dir: Path) -> Path:
    return cache_dir / "self_generated"


def _as_arrow(documents: list[np.ndarray]) -> bytes:
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int32)
    ids = np.concatenate(documents).astype(np.int32)
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, ids)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _read_documents(content: bytes) -> list[np.ndarray]:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
        column = reader.read_all()["input_ids"].combine_chunks()
    ids = column.flatten().to_numpy()
    return np.split(ids, column.offsets.to_numpy()[1:-1])


def _write_shard(path: Path, content: bytes) -> None:
    _write_whole(path, lambda partial: partial.write_bytes(content))
    # Last: a shard without a checksum is one whose writer was stopped.
    _write_whole(_checksum_file(path), lambda partial: partial.write_text(_checksum(content, path.name)))


def _checksum(content: bytes, name: str) -> str:
    """As `sha256sum` writes and checks it. Arrow may crash on damaged bytes: it is shown none."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _kept_checksum(path: Path) -> str | None:
    try:
        return _checksum_file(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _write_whole(path: Path, write: Callable[[Path], object], *, replacing: bool = True) -> None:
    """Let `write` make a file aside, and put it in its place; without `replacing`, only where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    if replacing or not _linked(partial, path):
        partial.replace(path)


def _linked(partial: Path, path: Path) -> bool:
    """Move a file where none is, or drop it; False, and nothing done, on a file system without links."""
    try:
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    except OSError:
        return False
    partial.unlink()
    return True


def _partial(path: Path) -> Path:
    """A name beside `path` that nobody else takes: containers that share a cache may have equal process numbers."""
    own = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{PARTIAL}{own}-{path.name}")


def _remove_old_partials(folder: Path) -> None:
    """What killed processes left."""
    for path in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another run removed it, or this one must not
            if time.time() - path.stat().st_mtime > SECONDS_OF_PARTIALS:
                path.unlink()
