"""Names that become folders and files: none of them leads out of the folder that it is put in."""

from __future__ import annotations

import re

from sae_faithful.interfaces import UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LONGEST = 150
"""File systems take 255 bytes; a folder in the making has a longer name."""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Devices, on Windows, whatever their ending."""
SHOWN = 60


def check_name(name: object, what: str = "") -> None:
    """Refuse what cannot name a folder on every system, or is a path.

    Args:
        name: of a source, dataset, variant, baseline, plugin, hook, artifact.
        what: is named, for the message.

    Raises:
        UsageError: other characters than letters, digits, '.', '_' and '-', none of them first but letters and digits;
            a name too long, or reserved.
    """
    text = str(name)
    start = f"{what} " if what else ""
    if not NAME.fullmatch(text) or text.endswith("."):
        shown = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
        raise UsageError(f"{start}{shown} cannot name a folder; use letters, digits, '.', '_' and '-'")
    if len(text) > LONGEST:
        raise UsageError(
            f"{start}'{text[:SHOWN]}...' has {len(text)} characters; a folder's name takes {LONGEST}"
        )
    if RESERVED.fullmatch(text):
        raise UsageError(f"{start}'{text}' cannot name a folder: Windows keeps it for a device")
