"""The `ratchet` command: finds the verb, hands over to its package, turns known errors into one line.

Imports nothing that it does not need, so that `--help` answers at once.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DEFAULT_CONFIG = Path("ratchet.toml")


class Verb(NamedTuple):
    package: str
    summary: str


VERBS = {
    "up": Verb("ops", "start the whole service on this machine and watch it"),
    "demo": Verb("ops.simulation", "turn the loop with simulated users and show what it gained"),
    "gateway": Verb("serving", "serve the OpenAI-compatible API and the chat page"),
    "keys": Verb("serving", "create, list and revoke API keys"),
    "pipeline": Verb("feedback", "fold recorded events into grades and preference pairs"),
    "forward": Verb("feedback", "move the embedded event log on to Kafka"),
    "data": Verb("feedback", "build, compare, export and trace dataset snapshots; dead letters; erase users"),
    "review": Verb("feedback", "how far people's comparisons are, and how far their raters agree"),
    "learn": Verb("learner", "make the base model, train reward model and policy, run turns"),
    "engine": Verb("ops", "run one engine replica in the foreground"),
    "controller": Verb("ops", "load adapters, judge candidates, roll them out"),
    "adapters": Verb("ops", "list, show, promote and roll back adapters"),
    "simulate": Verb("ops.simulation", "send simulated users to a running gateway"),
}

ELSEWHERE = {"data erase": "ops"}
"""Actions that need more than the package of their verb may import."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns: its exit status; 2 for a command line or a setting that cannot work."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        config, words = _split_config(words)
    except ValueError as e:
        return _refuse(str(e))
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        return _version()
    if words[0] not in VERBS:
        return _refuse(f"there is no verb {words[0]!r}{_suggestion(words[0])}; `ratchet --help` lists them")
    _follow_parent()
    package = ELSEWHERE.get(" ".join(words[:2]), VERBS[words[0]].package)
    return _run(package, words, config)


def _run(package: str, words: list[str], config: Path | None) -> int:
    verb = importlib.import_module(f"{package}.__main__")
    try:
        return int(verb.main(words, config) or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `ratchet … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _known_errors(package) as e:
        print(f"ratchet {words[0]}: {e}", file=sys.stderr)
        return 2


def _known_errors(package: str) -> tuple[type[Exception], ...]:
    """The roots of the error trees that a verb of `package` can raise."""
    found = []
    for name in {"feedback", "ops", package.split(".")[0]}:
        module = importlib.import_module(f"{name}.errors")
        found += [c for c in vars(module).values() if isinstance(c, type) and Exception in c.__bases__]
    return tuple(found)


def _split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    if words and words[0] == "--config":
        if len(words) < 2:
            raise ValueError("--config needs a file")
        return Path(words[1]), words[2:]
    if words and words[0].startswith("--config="):
        return Path(words[0].removeprefix("--config=")), words[1:]
    return (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None), words


def _help() -> str:
    lines = [f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: ratchet [--config FILE] VERB …",
            "",
            "The online feedback loop of a deployed chat assistant.",
            "",
            *lines,
            "",
            "`ratchet VERB --help` says more. The default FILE is ./ratchet.toml, where there is one.",
        ]
    )


def _version() -> int:
    from importlib.metadata import version

    print(f"ratchet {version('ratchet')}")
    return 0


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, VERBS, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _refuse(message: str) -> int:
    print(f"ratchet: {message}", file=sys.stderr)
    return 2


def _follow_parent() -> None:
    """End with the supervisor that started this process, even when that one is killed."""
    parent = os.environ.pop("RATCHET_SUPERVISOR", "")
    if parent:
        from ops.supervise import die_with

        die_with(int(parent))


if __name__ == "__main__":
    sys.exit(main())
