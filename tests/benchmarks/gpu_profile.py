"""What a call spends a device's time on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from measuring import Row, first_line
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable


def heaviest(call: Callable[[], object], device: str, parts: int = 6) -> Row:
    """The kernels (on a CPU: operations) that take longest, their shares of the sum of all, and that sum in ms."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    call()
    try:
        with profile(activities=activities) as record:
            call()
            if on_gpu:
                torch.cuda.synchronize()
        events = record.key_averages()
    except RuntimeError as error:
        return {"missing": first_line(error)}
    times: dict[str, float] = {}
    for event in events:
        # An operation's share of the device is its kernels', and so is that of a named range around them.
        named = getattr(event, "is_user_annotation", False)
        if on_gpu and (named or event.device_type != torch.autograd.DeviceType.CUDA):
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[short(event.key)] = times.get(short(event.key), 0.0) + spent / 1000
    total = sum(times.values())
    if not total:
        return {"missing": "the profiler saw no work of the device"}
    first = sorted(times.items(), key=lambda item: -item[1])[:parts]
    return {"ms": total, "parts": [{"name": name, "share": spent / total} for name, spent in first]}


def short(kernel: str) -> str:
    """A kernel's name without its namespaces and template arguments."""
    name = re.sub(r"^void ", "", kernel)
    return re.split(r"[<(]", name)[0].split("::")[-1] or name


def told(found: Row) -> str:
    """In one line."""
    if "missing" in found:
        return f"not profiled: {found['missing']}"
    parts = ", ".join(f"{part['name']} {100 * part['share']:.0f} %" for part in found["parts"])
    return f"{found['ms']:.3g} ms of the device: {parts}"
