"""`ratchet simulate` and `ratchet demo`: simulated users for a running service; the whole loop, shown."""

import argparse
import asyncio
import importlib
import os
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


def main(argv: list[str], config: Path | None = None) -> int:
    """Run the verb `argv[0]`; the exit status."""
    if argv[:1] == ["demo"]:
        return int(importlib.import_module("ops.simulation.demo").main(argv, config))
    return simulate(parsed(argv[1:]))


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ratchet simulate", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the service's OpenAI base URL")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY"), help="API key (or OPENAI_API_KEY)")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--conversations", type=int, default=100, help="of all users together")
    parser.add_argument("--concurrency", type=int, default=16, help="conversations at a time")
    parser.add_argument("--seed", type=int, default=0, help="of everything the users decide")
    parser.add_argument(
        "--split", choices=("seen", "heldout"), default="seen", help="questions that they ask"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    options = parser.parse_args(arguments)
    if not options.key:
        parser.error("no API key: give --key or set OPENAI_API_KEY")
    if min(options.users, options.conversations, options.concurrency) < 1:
        parser.error("--users, --conversations and --concurrency are at least 1")
    return options


def simulate(options: argparse.Namespace) -> int:
    """0 when every request was answered, else 1."""
    from ops.simulation.users import run

    report = asyncio.run(
        run(
            options.url,
            options.key,
            users=options.users,
            conversations=options.conversations,
            seed=options.seed,
            concurrency=options.concurrency,
            split=options.split,
        )
    )
    if options.json:
        print(msgspec.json.encode(report).decode())
        return 1 if report.failures else 0
    table = Table("what", "how often")
    counts = {"conversations": report.conversations, "requests": report.requests, **report.did}
    for name, count in (counts | {f"failed: {k}": v for k, v in report.failures.items()}).items():
        table.add_row(name.replace("_", " "), str(count))
    console = Console()
    console.print(table)
    console.print(f"true utility of first replies: {report.utility} in {report.seconds:.1f} s")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
