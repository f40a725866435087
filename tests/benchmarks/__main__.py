"""`make bench` and `make bench-NAME`: prints a benchmark's `rows()`, writes `build/bench-NAME.json`."""

import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

COLUMNS = ("figure", "value", "unit", "goal", "peer", "peer_value")


def names() -> list[str]:
    return sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py"))


def show(name: str, rows: list[dict[str, object]]) -> None:
    table = Table(*COLUMNS, title=f"bench-{name}")
    for row in rows:
        table.add_row(
            *(
                "" if row.get(c) is None else f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c])
                for c in COLUMNS
            )
        )
    Console(width=140).print(table)


def main(wanted: list[str]) -> int:
    unknown = set(wanted) - set(names())
    if unknown:
        print(f"no benchmark {unknown.pop()!r}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    out = Path("build")
    out.mkdir(exist_ok=True)
    for name in wanted or names():
        rows = importlib.import_module(f"tests.benchmarks.bench_{name}").rows()
        show(name, rows)
        (out / f"bench-{name}.json").write_text(
            json.dumps([{c: r.get(c) for c in COLUMNS} for r in rows], indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
