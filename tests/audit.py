"""`make audit`: known flaws of what is installed, by pip-audit; it says so where their database cannot be reached."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

NOT_DONE = 3
OWN = ("sae-faithful",)


def main() -> int:
    """0: no known flaws; 1: some; 3: the database did not answer for every package."""
    pip_audit = sys.argv[1]
    pins = sorted(
        f"{one.name}=={one.version.partition('+')[0]}\n"  # a build's own suffix is in no database
        for one in metadata.distributions()
        if one.name not in OWN
    )
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "installed.txt"
        requirements.write_text("".join(dict.fromkeys(pins)))
        command = [pip_audit, "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run([*command, "--requirement", str(requirements)], capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"audit: not done: the database of known flaws cannot be reached ({reason[:200]})")
        return NOT_DONE
    flaws = [(one["name"], one["version"], flaw) for one in found for flaw in one.get("vulns", [])]
    for name, version, flaw in flaws:
        fixed = ", ".join(flaw["fix_versions"]) or "nowhere yet"
        print(f"{name} {version}: {flaw['id']}, fixed in {fixed}")
    skipped = [one["name"] for one in found if "skip_reason" in one]
    asked = f"{len(found) - len(skipped)} of {len(found)} packages"
    if skipped:
        named = ", ".join(skipped[:5]) + (" ..." if len(skipped) > 5 else "")
        print(f"audit: not done: the database of known flaws answered for {asked}; not for {named}")
        return NOT_DONE
    print(f"audit: {len(flaws)} known flaws in {asked}")
    return 1 if flaws else 0


if __name__ == "__main__":
    sys.exit(main())
