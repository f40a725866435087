"""What `ratchet data` prints: tables for people, JSON for programs. Computes nothing."""

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feedback import codec
from feedback.comparisons import Tally
from feedback.events import Event, SignalReceived, TurnRecorded
from feedback.records import Pair
from feedback.snapshots import TABLES, Lineage, Manifest
from feedback.text import content_text

_SHOWN_CHARACTERS = 70


def manifests(found: Sequence[Manifest], *, as_json: bool) -> None:
    if as_json:
        return _print_json(list(found))
    table = Table("snapshot", "built", *TABLES, "train / held-out pairs", "parent")
    for m in found:
        splits = m.splits["pairs"]
        table.add_row(
            m.name,
            f"{m.created_at:%Y-%m-%d %H:%M:%S}",
            *(f"{m.rows[name]}" for name in TABLES),
            f"{splits.get('train', 0)} / {splits.get('heldout', 0)}",
            m.parent or "–",
        )
    Console().print(table if found else "no snapshots yet: ratchet data build")


def manifest(m: Manifest, *, as_json: bool) -> None:
    if as_json:
        return _print_json(m)
    facts = Table(title=m.name, show_header=False)
    for name, value in (
        ("hash", m.hash),
        ("built", m.created_at.isoformat(timespec="seconds")),
        ("by", f"ratchet {m.code_version}, schema {m.schema_version}"),
        ("parent", m.parent or "–"),
        ("offsets", ", ".join(f"{place}: {n}" for place, n in m.offsets.items())),
        (
            "set aside",
            f"{m.set_aside} rows of held-out users on training prompts, or judgements on held-out ones",
        ),
        ("held out", f"{m.heldout_fraction:.0%} of users and of prompt clusters"),
        ("account cap", f"{m.account_cap:.1%} of the weight"),
        ("subject cap", f"{m.subject_cap:.1%} of the weight, or twice the subject's share of accounts"),
        (
            "judgement cap",
            f"{m.judgement_cap:.1%} of the training weight; judgements have {m.judgement_share:.1%}",
        ),
        ("trusted weight", f"{m.weight_kept:.1%} of what grades and pairs weigh by their kind"),
        ("rare arms", f"weigh at most {m.propensity_clip:g} times as much as they were served"),
        ("fit", m.fit_hash or "–"),
    ):
        facts.add_row(name, value)
    rows = Table("table", "rows", "train", "held out", "by signal")
    for name in TABLES:
        kinds = ", ".join(f"{kind} {n}" for kind, n in m.kinds.get(name, {}).items())
        train, heldout = (m.splits[name].get(split, 0) for split in ("train", "heldout"))
        rows.add_row(name, f"{m.rows[name]}", f"{train}", f"{heldout}", kinds)
    console = Console()
    console.print(facts)
    console.print(rows)
    if m.fit:
        console.print(_fit(m))
    if m.comparisons.counted or m.comparisons.dropped:
        console.print(_comparisons(m.comparisons))
    if m.quarantined:
        console.print(_quarantine(m))


def _fit(m: Manifest) -> Table:
    table = Table(
        "signal", "tier", "accuracy", "prior", "agreed", "disagreed", title="Against the gold slice"
    )
    for a in m.fit:
        table.add_row(
            a.kind,
            a.tier,
            f"{a.mean:.3f}",
            f"{a.prior:.2f}",
            f"{a.agreed:.1f}",
            f"{a.disagreed:.1f}",
        )
    return table


def _comparisons(t: Tally) -> Table:
    left_out = "".join(f"; {n} {reason}, dropped" for reason, n in t.dropped.items())
    table = Table("which", "preferred", "share", "95 % interval", title="Two replies side by side")
    table.caption = f"{t.counted} counted, {t.ties} of them ties{left_out}"
    for name, wins in t.wins.items():
        low, high = wins.interval
        table.add_row(name, f"{wins.won} of {wins.of}", f"{wins.share:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def _quarantine(m: Manifest) -> Table:
    table = Table("account", "reason", "rows", "weight", title="In quarantine")
    for held in m.quarantined:
        table.add_row(held.account, held.reason, f"{held.rows}", f"{held.weight:.2f}")
    return table


def lineage(found: Lineage, *, as_json: bool) -> None:
    events = [codec.decode(raw) for raw in found.events]
    if as_json:
        return _print_json(
            {
                "snapshot": found.snapshot,
                "split": found.split,
                "pair": found.pair,
                "events": [msgspec.Raw(raw) for raw in found.events],
            }
        )
    console = Console()
    console.print(_pair(found.pair, found))
    table = Table("time", "event", "user", "what")
    for event in events:
        table.add_row(
            f"{event.time:%Y-%m-%d %H:%M:%S}",
            event.id,
            Text(getattr(event.data, "user", "")),
            Text(_what(event)),
        )
    console.print(table)


def _pair(pair: Pair, found: Lineage) -> Table:
    table = Table(title=f"{pair.pair_id} in {found.snapshot}, {found.split}", show_header=False)
    for name, value in (
        ("prompt", content_text(pair.prompt[-1])),
        ("chosen", f"{pair.chosen_response_id or 'an edit'}: {pair.chosen}"),
        ("rejected", f"{pair.rejected_response_id}: {pair.rejected}"),
        ("because", f"{pair.reason} (p {pair.p:.2f}, weight {pair.weight:.3f})"),
    ):
        table.add_row(name, Text(value))
    return table


def _what(event: Event) -> str:
    data = event.data
    if isinstance(data, TurnRecorded):
        return f"turn by {data.adapter} ({data.arm}, {data.status}): {_short(content_text(data.reply))}"
    if isinstance(data, SignalReceived):
        value = "" if data.value is None else f" {data.value:g}"
        return f"{data.kind}{value} {_short(data.text or '')}".rstrip()
    return ""


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
