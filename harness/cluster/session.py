"""One run from a plan to finished reports: what `harness run` does, as a function."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from harness import codec
from harness.cluster.errand import Errand, Orders
from harness.cluster.fanout import connect, inspect_on_ray, run_on_ray
from harness.cluster.interrupts import held_off
from harness.cluster.journal import Journal, prepare_folder, reopen
from harness.cluster.local import inspect_here, run_here
from harness.cluster.plan import check, choose, effort_for, plan, seed_or_fresh
from harness.cluster.task import Inventory
from harness.cluster.tries import Tries
from harness.errors import MisuseError
from harness.measure.moment import Moment
from harness.measure.rounds import Effort
from harness.measure.runner import now
from harness.model import Device, Job, Node, Outcome, Report
from harness.proof.seal import OPEN
from harness.proof.signing import Key, load_key

__all__ = ["Finished", "Outlook", "Progress", "Silent", "Watcher", "devices", "run"]

KEY_VARIABLE = "HARNESS_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How a run will go about its jobs."""

    effort: Effort
    nodes: Mapping[str, str]  # the name of each device's node, by the device's UUID
    side_by_side: bool  # whether devices work at the same time


class Progress(Protocol):
    """Whoever wants to follow a run."""

    def planned(
        self, devices: Sequence[Device], jobs: Sequence[Job], already: int, outlook: Outlook | None = None
    ) -> None:
        """Hear what is about to run; `already` jobs were done by an earlier run."""

    def started(self, job: Job) -> None:
        """Hear that a job has begun."""

    def ended(self, outcome: Outcome) -> None:
        """Hear how a job ended, after it is on disk."""


@runtime_checkable
class Watcher(Protocol):
    """A follower that also wants to know now and then what devices on other machines do."""

    def glanced(self, uuid: str, moment: Moment) -> None:
        """Hear what a device does."""


class Silent:
    """A follower that says nothing."""

    def planned(
        self, devices: Sequence[Device], jobs: Sequence[Job], already: int, outlook: Outlook | None = None
    ) -> None:
        """Ignore it."""

    def started(self, job: Job) -> None:
        """Ignore it."""

    def ended(self, outcome: Outcome) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A report and the file that holds it."""

    path: Path
    report: Report


def devices(ray: str | None = None) -> tuple[Device, ...]:
    """Return the devices of this machine, or of a Ray cluster: the usable ones, and the others with the reason."""
    with _reach(ray) as cluster:
        return tuple(d for inventory in _inspect(cluster) for d in inventory.devices)


def run(
    *names: str,
    preset: str = "quick",
    device: str = "all",
    seed: str | None = None,
    out: str | Path = "results",
    ray: str | None = None,
    budget_s: float | None = None,
    resume: str | Path | Sequence[str | Path] = (),
    key: str | Path | None = None,
    node: str | None = None,
    force: bool = False,
    together: bool = False,
    progress: Progress | None = None,
    live: str | Path | None = None,
) -> tuple[Finished, ...]:
    """Measure, and write one sealed report a node.

    Args:
        names: benchmarks to run; none means all.
        preset: `quick` (a minute), `standard`, or `full`.
        device: `all`, `cpu` or `cuda:N`.
        seed: hex digits that all inputs follow from; fresh ones by default.
        out: folder for the reports, made if missing.
        ray: `local` or the address of a Ray cluster; by default this machine without Ray. A cluster that is lost may take this very
            process along, which is why the command line does this in a child; what was measured is on disk.
        budget_s: seconds after which nothing new is started; what is left is reported as skipped.
        resume: unfinished reports to finish, with the plans, seeds and the one preset they have.
        key: file of the key to sign with (`keygen`); by default the one named by HARNESS_KEY; without one, unsigned.
        node: label of this node in its report, if there is one node; by default its host name.
        force: measure also a device that the preflight advises against.
        together: the GPUs of a node start each batch at the same moment, to show what they take from each other.
        progress: whoever wants to follow.
        live: folder in which each device of this machine has its last moment pinned up (`harness.cluster.board`); not through Ray.

    Returns:
        The reports, whose outcomes may include failures: look before you trust.

    Raises:
        MisuseError: the request names something that is not there.
        FailureError: nothing could be run, or a report could not be written.
    """
    signing, follower = _key(key), progress or Silent()
    ways = _Ways(force=force, together=together, live=Path(live) if live and not ray else None)
    if unfinished := (resume,) if isinstance(resume, str | Path) else tuple(resume):
        with ExitStack() as held:
            journals = [held.enter_context(reopen(file, signing)) for file in unfinished]
            preset = _one_preset(journals)
            cluster = held.enter_context(_reach(ray))
            found = _inspect(cluster, _idle_s(preset))
            tasks = [(_rest(journal, found), journal) for journal in journals]
            return _carry_out(tasks, preset, cluster, budget_s, follower, ways)
    digits = seed_or_fresh(seed)
    check(names, preset, budget_s)
    folder = prepare_folder(out)
    with _reach(ray) as cluster:
        seen = _labelled(_chosen(_inspect(cluster, _idle_s(preset)), device), node)
        tasks = [_begin(i, chosen, names, preset, digits, folder, signing) for i, chosen in seen]
        return _carry_out(tasks, preset, cluster, budget_s, follower, ways)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """How to carry a run out, and where to show it."""

    force: bool
    together: bool
    live: Path | None


def _reach(ray: str | None) -> AbstractContextManager[Any]:
    """Hold one connection for looking and measuring: a local cluster ends with it, and the next one has other nodes."""
    return connect(ray) if ray else nullcontext()


def _inspect(cluster: Any, idle_s: float = 0.0) -> tuple[Inventory, ...]:
    return inspect_on_ray(cluster, idle_s) if cluster else inspect_here(idle_s)


def _idle_s(preset: str) -> float:
    return effort_for(preset, None, 1).idle_s


def _key(path: str | Path | None) -> Key | None:
    named = path or os.environ.get(KEY_VARIABLE)
    return load_key(named) if named else None


def _chosen(found: Sequence[Inventory], selector: str) -> list[tuple[Inventory, tuple[Device, ...]]]:
    """Pick the devices on each node. A node without them is left out, unless none has any."""
    picked, refusal = [], None
    for inventory in found:
        try:
            picked.append((inventory, choose(inventory.devices, selector)))
        except MisuseError as err:
            refusal = err
    if refusal and not picked:
        raise refusal
    return picked


def _labelled(
    seen: list[tuple[Inventory, tuple[Device, ...]]], label: str | None
) -> list[tuple[Inventory, tuple[Device, ...]]]:
    """Give the node its label, which no two nodes may share: their reports would form one chain."""
    if label is None:
        return seen
    if len(seen) > 1:
        names = ", ".join(inventory.node.name for inventory, _ in seen)
        msg = f"the label {label!r} is for one node, and there are {len(seen)}: {names}; leave it out, and each has its host name"
        raise MisuseError(msg)
    return [(replace(inventory, node=Node(name=label)), chosen) for inventory, chosen in seen]


def _begin(
    inventory: Inventory,
    chosen: tuple[Device, ...],
    names: Sequence[str],
    preset: str,
    seed: str,
    folder: Path,
    key: Key | None,
) -> tuple[Errand, Journal]:
    jobs = plan(chosen, names, preset, seed)
    created_at = now()
    head = Report(
        schema="harness.report/2",
        created_at=created_at,
        sealed_at=created_at,
        node=inventory.node,
        environment=inventory.environment,
        devices=chosen,
        preflight=tuple(seen for seen in inventory.preflight if seen.device_uuid in {d.uuid for d in chosen}),
        emulated=any(d.emulated for d in chosen),
        preset=preset,
        seed=seed,
        plan=jobs,
        outcomes=(),
        previous=None,
        seal=OPEN,
    )
    return Errand(inventory=inventory, jobs=jobs), Journal(folder, head, key)


def _one_preset(journals: Sequence[Journal]) -> str:
    presets = sorted({journal.report.preset for journal in journals})
    if len(presets) > 1:
        msg = f"these reports have presets {' and '.join(presets)}: resume those of one preset at a time"
        raise MisuseError(msg)
    return presets[0]


def _rest(journal: Journal, found: Sequence[Inventory]) -> Errand:
    """Return the jobs that a report still lacks, on the node that has its devices; of several that claim to have them, on its own."""
    jobs = journal.pending()
    needed = {job.device_uuid for job in jobs}
    fit = [i for i in found if needed <= {d.uuid for d in i.devices if d.unusable_reason is None}]
    own = [i for i in fit if i.node == journal.report.node] if len(fit) > 1 else fit
    if own:
        return Errand(inventory=own[0], jobs=jobs)
    if fit:
        nodes = ", ".join(i.node.name for i in fit)
        msg = f"cannot resume {str(journal.path)!r}: nodes {nodes} say that they are the same machine, and none is {journal.report.node.name}"
        raise MisuseError(msg)
    names = ", ".join(d.name for d in journal.report.devices if d.uuid in needed)
    msg = f"cannot resume {str(journal.path)!r} here: it was measured on {names}, which this machine does not have"
    raise MisuseError(msg)


def _carry_out(
    tasks: Sequence[tuple[Errand, Journal]],
    preset: str,
    cluster: Any,
    budget_s: float | None,
    follower: Progress,
    ways: _Ways,
) -> tuple[Finished, ...]:
    jobs = [job for errand, _ in tasks for job in errand.jobs]
    books = {_name(journal.report): (journal, Tries(journal.path)) for _, journal in tasks}
    already = sum(len(journal.report.outcomes) for _, journal in tasks)
    effort = effort_for(preset, budget_s, len(jobs))
    nodes = {d.uuid: journal.report.node.name for _, journal in tasks for d in journal.report.devices}
    outlook = Outlook(effort=effort, nodes=nodes, side_by_side=bool(cluster) or ways.together)
    follower.planned([d for _, journal in tasks for d in journal.report.devices], jobs, already, outlook)
    orders = Orders(
        effort=effort,
        started=follower.started,
        out_of_time=_clock(budget_s),
        tried=lambda errand, *what: books[errand.run][1].record(*what),
        force=ways.force,
        together=ways.together,
        live=ways.live,
        saving=held_off,
        glanced=follower.glanced if cluster and isinstance(follower, Watcher) else None,
    )
    errands = [
        replace(errand, run=run, past=tries.past)
        for (errand, _), (run, (_, tries)) in zip(tasks, books.items(), strict=True)
    ]
    with ExitStack() as held:  # an interrupted run seals what it has, and lets go of its files
        for journal, tries in books.values():
            held.enter_context(journal)
            held.callback(tries.close)
        carried_out = run_on_ray(errands, orders, cluster) if cluster else run_here(errands, orders)
        for errand, outcome in held.enter_context(closing(carried_out)):
            follower.ended(books[errand.run][0].append(outcome))
        for journal, tries in books.values():
            journal.finish()
            tries.close(complete=not journal.pending())
        return tuple(Finished(path=journal.path, report=journal.report) for journal, _ in books.values())


def _name(head: Report) -> str:
    """Name a run, the same when it is resumed."""
    return codec.digest([head.created_at, head.node.name, head.seed, [device.uuid for device in head.devices]])[:32]


def _clock(budget_s: float | None) -> Callable[[], str | None]:
    began = time.monotonic()

    def spent() -> str | None:
        if budget_s is not None and time.monotonic() - began >= budget_s:
            return f"the run's budget of {budget_s:g} s was spent before its turn came"
        return None

    return spent
