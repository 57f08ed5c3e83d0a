"""What was seen of a server, as tables for a terminal. A percentile that the sample does not certify is a dash."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from harness.inference.audit import Finding
from harness.inference.metrics import Distribution, floor_count
from harness.inference.serving import Level, ServeReport, Spread
from harness.inference.slo import Search
from harness.render.tables import Whole, blank_table

__all__ = ["serve_report"]

_GOOD, _FAIR, _BAD = "green", "yellow", "red"
_STATES = {"clear": _GOOD, "flagged": _BAD, "unknown": _FAIR}
_SHOWN = (50.0, 90.0, 99.0)
_FEWEST_REPETITIONS = 3
_FOR_AN_INTERVAL = 6  # below, a bootstrap gives no more than the range, which holds the median with 1 - 2 / 2^n
_INTERVAL = "95 % interval of the median of the repetitions"


def serve_report(report: ServeReport) -> RenderableType:
    """Return a report: what was asked of whom, a table of loads, then the search, what the audits found, and how the client fared."""
    title = Text.assemble((report.server, "bold cyan"), "  ", (report.model, "bold"), f"  {report.api}")
    tokens = "unknown" if report.input_tokens is None else str(report.input_tokens)
    ends = " (it refuses ignore_eos: a reply may end before)" if report.ignore_eos is False else ""
    asked = Text(
        f"  prompts of {tokens} tokens ({report.prompt_words_count} words), {report.plan.output_tokens} tokens of reply asked for{ends}, "
        f"good: {_slo(report)}",
        style="dim",
    )
    parts: list[RenderableType] = [title, asked]
    if report.levels:
        parts += [_levels(report), *_notes(report)]
    parts += [Text(_search(s, i)) for i, s in enumerate(report.searches)]
    if report.max_rate:
        parts.append(Text.assemble("highest rate within the SLO: ", (f"{_spread(report.max_rate)} requests/s", "bold")))
    parts += [_finding(f) for f in report.findings]
    parts += [Text(line, style="dim") for line in _client(report.levels)]
    return Group(*parts)


def _slo(report: ServeReport) -> str:
    slo = report.plan.slo
    limits = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("end to end", slo.e2e_s))
    kept = ", ".join(f"{name} <= {value * 1e3:g} ms" for name, value in limits if value is not None)
    return f"{slo.name} ({kept})" if kept else f"{slo.name} (whole)"


def _levels(report: ServeReport) -> Whole:
    money = any(level.usd_per_million_output is not None for level in report.levels)
    energy = any(level.spread("tokens_per_joule").value is not None for level in report.levels)
    shown = [f"p{p:g}" for p in _SHOWN]
    columns = [
        "requests",
        "failed",
        "TTFT ms",
        *shown[1:],
        "TPOT ms",
        *shown[1:2],
        "end s",
        *shown[1:2],
        "tokens/s",
        "good/s",
        "good",
    ]
    names = (*columns, *(["USD/M tokens"] if money else []), *(["tokens/J"] if energy else []))
    table = blank_table("load", *names, right=names)
    for level in report.levels:
        table.add_row(*_row(level, money=money, energy=energy))
    return table


def _row(level: Level, *, money: bool, energy: bool) -> list[str]:
    by_metric = {d.metric: d for d in level.distributions}
    failed = sum(x.failure is not None for run in level.runs for x in run.exchanges)
    ttft = _percentiles(by_metric["ttft/1"], 1e3, _SHOWN)
    tpot = _percentiles(by_metric["tpot/1"], 1e3, _SHOWN[:2])
    e2e = _percentiles(by_metric["e2e/1"], 1.0, _SHOWN[:2])
    good = "-" if level.good_fraction is None else f"{level.good_fraction:.0%}"
    row = [
        _load(level),
        str(sum(len(run.exchanges) for run in level.runs)),
        str(failed),
        *(*ttft, *tpot, *e2e),
        _spread(level.spread("output_tokens_per_s")),
        _number(level.spread("good_requests_per_s").value),
        good,
    ]
    if money:
        row.append("-" if level.usd_per_million_output is None else f"{level.usd_per_million_output:.4f}")
    if energy:
        row.append(_number(level.spread("tokens_per_joule").value))
    return row


def _load(level: Level) -> str:
    if level.mode == "closed":
        return f"{level.users_count} user{'' if level.users_count == 1 else 's'}"
    cap = f", {level.cap_count} in flight" if level.cap_count else ""
    return (f"{level.rate_per_s:.4g}/s" if level.rate_per_s else "all at once") + cap


def _percentiles(found: Distribution, scale: float, percents: Sequence[float]) -> list[str]:
    by_percent = {p.percent: p for p in found.percentiles}
    told = []
    for percent in percents:
        p = by_percent[percent]
        told.append(_number(p.value_s * scale) if p.value_s is not None else "never" if p.state == "failures" else "-")
    return told


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"  # noqa: PLR2004 - four digits


def _spread(spread: Spread) -> str:
    ends = "" if spread.low is None or spread.high is None else f" [{_number(spread.low)} .. {_number(spread.high)}]"
    return _number(spread.value) + ends


def _notes(report: ServeReport) -> list[Text]:
    columns = "columns after TTFT, TPOT and end: p50, then the percentiles named; from the intended start"
    count = report.plan.repetitions_count
    lines = [columns, f"brackets: {_INTERVAL if count >= _FOR_AN_INTERVAL else f'range of the {count} repetitions'}"]
    states = {
        p.state for level in report.levels for d in level.distributions for p in d.percentiles if p.percent in _SHOWN
    }
    if "too_few" in states:
        floors = ", ".join(f"{floor_count(p)} for p{p:g}" for p in _SHOWN)
        lines.append(f"-: too few requests to say so; it takes {floors}")
    if "failures" in states:
        lines.append("never: so many requests failed that this share of them had no answer")
    if count < _FEWEST_REPETITIONS:
        lines.append("no range: that takes three repetitions")
    if any(level.window == "whole" for level in report.levels):
        lines.append("rates of a load that is all there at once include its beginning and its end")
    failures = {x.failure for level in report.levels for run in level.runs for x in run.exchanges if x.failure}
    lines += [f"! failed: {why}" for why in sorted(failures)[:5]]
    return [Text(line, style=_FAIR if line.startswith("!") else "dim") for line in lines]


def _search(found: Search, index: int) -> str:
    passed = "no rate passed" if found.passed_rate_per_s is None else f"{found.passed_rate_per_s:.4g}/s passed"
    failed = "none failed" if found.failed_rate_per_s is None else f"{found.failed_rate_per_s:.4g}/s did not"
    why = f"; {found.ended}" if found.ended else ""
    return f"search {index + 1}: {passed}, {failed}, in {len(found.tries)} tries{why}"


def _finding(finding: Finding) -> Text:
    name = finding.audit.replace("_", " ")
    return Text.assemble(f"audit {name}: ", (finding.state, _STATES[finding.state]), f"  {finding.what}")


def _client(levels: Sequence[Level]) -> list[str]:
    loads = [run.client for level in levels for run in level.runs]
    if not loads:
        return []
    lag = max(c.lag_p99_s for c in loads)
    cpu = max(c.cpu_fraction for c in loads)
    again = sum(level.discarded_count for level in levels)
    more = f"; {again} repetitions were done again because it had been the bottleneck" if again else ""
    return [f"this client at its worst: late by {lag * 1e3:.1f} ms (p99), {cpu:.0%} of a core{more}"]
