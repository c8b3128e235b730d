"""Makes the tables and pictures of docs/results.md from the small files of runs in docs/results/.

    python docs/gen/answer.py --take runs/faithfulsae_smollm2     replaces the files by those of the runs there, then
    python docs/gen/answer.py                                     makes the page from what is in docs/results/
    python docs/gen/answer.py --check                             says whether page and pictures are out of date

`--price 3.5 --currency USD` (with `--take`), of an hour of the device, adds what each step cost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from answer_page import page
from answer_runs import runs_of, take

DOCS = Path(__file__).parents[1]
BEGIN, END = "<!-- made by docs/gen/answer.py -->\n", "<!-- end of what is made -->\n"


def files(docs: Path = DOCS) -> dict[Path, str]:
    """The page and its pictures as they should be, by path."""
    path = docs / "results.md"
    made, pictures = page(runs_of(docs / "results"))
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    found = {path: f"{before}{BEGIN}\n{made}\n{END}{after}"}
    return found | {docs / "images" / name: text for name, text in pictures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--take", type=Path, metavar="DIR", help="a run folder, or a folder of run folders")
    parser.add_argument("--price", type=float, help="of an hour of the device")
    parser.add_argument("--currency", default="USD")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.take is not None:
        take(options.take, options.price, options.currency)
    wanted = files()
    old = [path for path in (DOCS / "images").glob("results_*.svg") if path not in wanted]
    if options.check:
        stale = [
            path
            for path, text in wanted.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        if stale or old:
            sys.exit(
                f"out of date: {', '.join(str(path) for path in [*stale, *old])}; run python docs/gen/answer.py"
            )
        return
    for path in old:
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
