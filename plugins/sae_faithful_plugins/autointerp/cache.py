"""Replies of language models on disk: what was answered once is never asked, or paid for, again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_faithful import cache_dir

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ReplyCache:
    """One file a reply, named by a hash of all that was asked: model, prompt, and how it is to be answered.

    Where the model is reached and with which key is neither in the hash nor in the file.
    """

    folder: Path

    @classmethod
    def of_user(cls) -> ReplyCache:
        """In the cache folder that all runs share."""
        return cls(cache_dir() / "autointerp")

    def get(self, asked: object) -> Any:
        """What was answered; None where nothing was, or its file cannot be read."""
        try:
            return json.loads(self._path(asked).read_text(encoding="utf-8"))["reply"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, asked: object, reply: Any) -> None:
        """Keep a reply: written aside and renamed, so that no file is ever half there."""
        path = self._path(asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        aside.write_text(json.dumps({"reply": reply}, ensure_ascii=False), encoding="utf-8")
        aside.replace(path)

    @staticmethod
    def key(asked: object) -> str:
        """A hash of what was asked."""
        text = json.dumps(asked, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _path(self, asked: object) -> Path:
        key = self.key(asked)
        return self.folder / key[:2] / f"{key}.json"
