"""What `ratchet data` prints: tables for people, JSON for programs. Computes nothing."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from feedback import codec
from feedback.changes import Difference, RowChange
from feedback.comparisons import Tally
from feedback.events import Event, SignalReceived, TurnRecorded
from feedback.export import Exported
from feedback.lineage import Ancestry, Lineage, Trail
from feedback.pipeline import Replayed
from feedback.records import Demonstration, Grade, Pair
from feedback.retention import Expired
from feedback.review_report import agreement
from feedback.snapshots import TABLES, Manifest
from feedback.store import DeadLetter
from feedback.text import content_text

LARGEST = 20
"""Changed rows that a difference lists when not asked for all."""
_SHOWN_CHARACTERS = 70
_SHOWN_BYTES = 60


def manifests(found: Sequence[Manifest], *, as_json: bool) -> None:
    if as_json:
        return _print_json(list(found))
    table = Table(
        Column("snapshot", no_wrap=True),
        "built",
        *TABLES,
        "train / held-out pairs",
        Column("parent, or fate", overflow="fold"),
    )
    for m in found:
        splits = m.splits["pairs"]
        table.add_row(
            m.name,
            f"{m.created_at:%Y-%m-%d %H:%M:%S}",
            *(f"{m.rows[name]}" for name in TABLES),
            f"{splits.get('train', 0)} / {splits.get('heldout', 0)}",
            _fate(m),
        )
    Console().print(table if found else "no snapshots yet: ratchet data build")


def _fate(m: Manifest) -> str:
    for what, at in (("erased", m.erased_at), ("expired", m.expired_at)):
        if at is not None:
            return f"{what} on {at:%Y-%m-%d %H:%M}"
    return m.parent or "–"


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
        ("subject cap", f"{m.subject_cap:.1%} of the weight, or the subject's share of accounts"),
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
    if m.reviews.agreement:
        console.print(agreement(m.reviews.agreement))
    if m.quarantined:
        console.print(_quarantine(m))
    if m.doubted:
        console.print(_doubts(m))


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
    if (rate := m.fit[0].base_rate) is not None:
        table.caption = f"taking {rate:.2f} of the replies that were compared to be good"
    return table


def _comparisons(t: Tally) -> Table:
    left_out = "".join(f"; {n} {reason}, dropped" for reason, n in t.dropped.items())
    table = Table("which", "preferred", "share", "95 % interval", title="Two replies side by side")
    table.caption = f"{t.counted} counted, {t.ties} of them ties{left_out}"
    for name, wins in t.wins.items():
        low, high = wins.interval
        table.add_row(name, f"{wins.won} of {wins.of}", f"{wins.share:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def _doubts(m: Manifest) -> Table:
    table = Table("subject", "accounts", "rows", "weight taken", title="In doubt: against all others")
    table.caption = "each row's reason says so; [pipeline] trusted lifts it"
    for d in m.doubted:
        table.add_row(d.subject or "everything", f"{d.accounts}", f"{d.rows}", f"{d.weight:.2f}")
    return table


def _quarantine(m: Manifest) -> Table:
    table = Table("account", "reason", "rows", "weight", title="In quarantine")
    for held in m.quarantined:
        table.add_row(held.account, held.reason, f"{held.rows}", f"{held.weight:.2f}")
    return table


def lineage(found: Lineage, *, as_json: bool) -> None:
    if as_json:
        return _print_json({**msgspec.structs.asdict(found), "events": _raw(found.events)})
    title = f"{found.table[:-1]} in {found.snapshot}, {found.split}"
    _facts(title, _row_facts(found.row))
    _events(found.events)


def trail(found: Trail, *, as_json: bool) -> None:
    if as_json:
        return _print_json({**msgspec.structs.asdict(found), "events": _raw(found.events)})
    Console().print(Text(found.subject))
    _events(found.events)
    table = Table("snapshot", "built", *TABLES, title="Snapshots that hold it")
    for held in found.holdings:
        counts = (f"{len(held.rows.get(name, ()))}" for name in TABLES)
        table.add_row(held.snapshot, f"{held.created_at:%Y-%m-%d %H:%M:%S}", *counts)
    Console().print(table if found.holdings else "no snapshot holds it")


def ancestry(found: Ancestry, *, as_json: bool) -> None:
    if as_json:
        return _print_json(found)
    m = found.manifest
    facts = (
        ("built", m.created_at.isoformat(timespec="seconds")),
        ("from", ", ".join(f"{place}: {n}" for place, n in m.offsets.items())),
        ("rows", ", ".join(f"{n} {table}" for table, n in m.rows.items())),
        ("behind them", f"{found.events} events, the word of {found.users} users"),
        ("ancestors", ", ".join(found.ancestors) or "–"),
        ("descendants", ", ".join(found.descendants) or "–"),
    )
    _facts(m.name, facts)


def difference(found: Difference, *, every_row: bool, as_json: bool) -> None:
    rows = found.rows if every_row else found.rows[:LARGEST]
    if as_json:
        return _print_json({**msgspec.structs.asdict(found), "rows": rows, "changed": len(found.rows)})
    console = Console()
    if not found.rows:
        return console.print(f"{found.old} and {found.new} have the same rows")
    facts = Table("what", found.old, found.new, title="What differs around the rows")
    for fact in found.facts:
        facts.add_row(Text(fact.name), Text(fact.before), Text(fact.after))
    totals = Table("table", "change", "signal", "why", "rows", "weight", title="What changed")
    for t in found.totals:
        weight = f"{t.weight_before:.3f} → {t.weight_after:.3f}"
        totals.add_row(t.table, t.change, t.kind, t.why, f"{t.rows}", weight)
    console.print(facts)
    console.print(totals)
    console.print(_changed(rows, "Every change" if every_row else "The largest changes"))
    if len(rows) < len(found.rows):
        console.print(f"{len(found.rows) - len(rows)} smaller ones: --rows")


def _changed(rows: Sequence[RowChange], title: str) -> Table:
    table = Table(title=title)
    for name in ("id", "change", "signal", "p", "weight"):
        table.add_column(name, no_wrap=True)
    table.add_column("why")
    for row in rows:
        why = f"{row.why}: {row.detail}" if row.detail else row.why
        p, weight = (_from_to(row, name) for name in ("p", "weight"))
        table.add_row(row.id, row.change, row.kind, p, weight, Text(why))
    return table


def _from_to(row: RowChange, name: str) -> str:
    before, after = (f"{getattr(s, name):.3f}" if s else "" for s in (row.before, row.after))
    return before if before == after else f"{before} → {after}".strip()


def exported(done: Exported, *, as_json: bool) -> None:
    if as_json:
        return _print_json({**msgspec.structs.asdict(done), "folder": str(done.folder)})
    table = Table("file", "rows", title=f"{done.snapshot} for {done.format}, in {done.folder}")
    for file in done.files:
        table.add_row(file.path, f"{file.rows}")
    table.add_row("README.md", "")
    Console().print(table)
    if done.silent:
        Console().print(f"{done.silent} rows say nothing without soft labels and weights: left out")


def dead_letters(letters: Iterable[DeadLetter], *, as_json: bool) -> None:
    found = [{"number": n, **_headline(letter)} for n, letter in enumerate(letters, start=1)]
    if as_json:
        return _print_json(found)
    table = Table("N", "place", "tried", "kind", "bytes", "begins with", "reason")
    for line in found:
        table.add_row(
            f"{line['number']}",
            f"{line['topic']}/{line['partition']}/{line['offset']}",
            f"{line['at']:%Y-%m-%d %H:%M:%S}",
            line["kind"],
            f"{line['bytes']}",
            Text(line["begins_with"]),
            Text(_short(line["reason"].removeprefix(f"{line['kind']}: "))),
        )
    Console().print(table if found else "no dead letters")


def dead_letter(number: int, letter: DeadLetter, *, as_json: bool) -> None:
    headline = {"number": number, **_headline(letter)}
    if as_json:
        return _print_json({**headline, "value": letter.value.decode("utf-8", "backslashreplace")})
    _facts(f"dead letter {number}", ((name, f"{value}") for name, value in headline.items()))
    try:
        whole = msgspec.json.format(letter.value).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        whole = repr(letter.value)
    sys.stdout.write(whole + "\n")


def _headline(letter: DeadLetter) -> dict[str, Any]:
    return {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "at": letter.at,
        "kind": letter.kind,
        "reason": letter.reason,
        "bytes": len(letter.value),
        "begins_with": repr(letter.value[:_SHOWN_BYTES])[2:-1],
    }


def replayed(done: Replayed, *, as_json: bool) -> None:
    if as_json:
        failed = [_headline(letter) for letter in done.failed]
        return _print_json({"folded": done.folded, "repeated": done.repeated, "failed": failed})
    console = Console()
    console.print(
        f"{done.folded} folded, {done.repeated} whose event had come otherwise, {len(done.failed)} still dead"
    )
    for letter in done.failed:
        console.print(Text(f"{letter.topic}/{letter.partition}/{letter.offset}: {_short(letter.reason)}"))


def expired(gone: Expired, *, as_json: bool) -> None:
    if as_json:
        return _print_json(gone)
    events = ", ".join(f"{number} of {topic}" for topic, number in gone.events.items())
    for line in (
        f"events removed: {events or 'none expire ([retention] turns_days, signals_days)'}",
        f"dead letters removed: {gone.dead_letters}",
        f"snapshots whose files were removed: {', '.join(gone.snapshots) or 'none'}",
    ):
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _raw(events: Iterable[bytes]) -> list[msgspec.Raw]:
    return [msgspec.Raw(raw) for raw in events]


def _events(payloads: Iterable[bytes]) -> None:
    table = Table("time", "event", "user", "what")
    for event in map(codec.decode, payloads):
        user = getattr(event.data, "user", "")
        table.add_row(f"{event.time:%Y-%m-%d %H:%M:%S}", event.id, Text(user), Text(_what(event)))
    Console().print(table)


def _facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in facts:
        table.add_row(name, Text(value))
    Console().print(table)


def _row_facts(row: Pair | Grade | Demonstration) -> Iterable[tuple[str, str]]:
    yield "prompt", content_text(row.prompt[-1])
    if isinstance(row, Pair):
        yield "id", row.pair_id
        yield "chosen", f"{row.chosen_response_id or 'an edit'}: {row.chosen}"
        yield "rejected", f"{row.rejected_response_id}: {row.rejected}"
    elif isinstance(row, Grade):
        yield "id", row.grade_id
        yield "reply", f"{row.response_id}: {row.reply}"
    else:
        yield "id", row.demonstration_id
        yield "reply", row.reply
    if isinstance(row, Demonstration):
        yield "because", f"an edit (weight {row.weight:.3f})"
    else:
        yield "because", f"{row.reason} (p {row.p:.2f}, weight {row.weight:.3f})"


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
