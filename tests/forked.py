"""The command line in a process forked from one that has done the imports: they take longer than a small run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path


def import_everything() -> None:
    """Before the first fork. Threads do not survive one: none may be started here."""
    os.environ.update(
        OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", WANDB_MODE="disabled"
    )
    import pandas as pd
    import plotly.graph_objects as go
    import sae_lens
    import torch

    from sae_faithful import cli, experiment, load_plugins
    from sae_faithful.report import write_report

    del pd, go, sae_lens, cli, experiment, write_report
    torch.set_num_threads(1)
    load_plugins()


def be_the_command(
    arguments: list[str], output: Path, inject: Callable[[], object] | None, environment: dict[str, str]
) -> None:
    """Never comes back."""
    code = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from tqdm import tqdm

        from sae_faithful.cli import main

        # Its own lock is shared by all that is forked, and stays taken where one is killed that has it.
        tqdm.set_lock(threading.RLock())

        if inject is not None:
            inject()
        try:
            main(arguments, prog_name="sae-faithful")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
