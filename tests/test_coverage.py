"""The stopping rule holds the truth on noise where others do not."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TRIALS = 120
FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> Any:
    """Import a script of benchmarks/, which is no package, by a name of its own: Numba takes any `coverage` for the tool."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(FOLDER))
    return loaded


coverage = script("interval_coverage")
traces = sys.modules["traces"]
MODELS = {model.name: model for model in traces.MODELS}
RULES = {rule.name: rule for rule in coverage.RULES}
FIXED, STANDARD_ERROR, DEVIATION, COLD, WARM, SUSTAINED = RULES
LEAST = 0.92 - 2 * math.sqrt(0.92 * 0.08 / TRIALS)  # two standard errors of so many trials


def found(rule: str, model: str) -> Any:
    return coverage.cell(RULES[rule], MODELS[model], TRIALS)


@pytest.mark.parametrize("model", [m.name for m in traces.MODELS if m.promised])
def test_our_interval_holds_the_truth_and_settles(model: str) -> None:
    cell = found(WARM, model)
    assert cell.coverage_fraction >= LEAST
    assert cell.converged_fraction > 0.85


@pytest.mark.parametrize(
    ("rule", "model"),
    [
        *((rule, model) for rule in (FIXED, STANDARD_ERROR, DEVIATION) for model in ("clock states", "thermal drift")),
        *(
            (rule, model)
            for rule in (FIXED, STANDARD_ERROR, DEVIATION)
            for model in ("AR(1)", "neighbour", "swing 8 s")
        ),
        (STANDARD_ERROR, "spikes"),
    ],
)
def test_the_models_are_hard_for_the_rules_that_others_use(rule: str, model: str) -> None:
    cell = found(rule, model)
    assert cell.coverage_fraction < 0.4
    assert cell.converged_fraction > 0.85  # wrong, and sure of it


@pytest.mark.parametrize("model", [m.name for m in traces.MODELS if m.promised])
def test_the_sustained_interval_holds_the_truth_as_well(model: str) -> None:
    cell = found(SUSTAINED, model)
    assert cell.coverage_fraction >= LEAST
    assert cell.converged_fraction > 0.85


def test_without_a_soak_a_warming_device_is_refused_not_averaged() -> None:
    cell = found(COLD, "thermal drift")
    assert (cell.coverage_fraction, cell.refused_fraction, cell.misleading_fraction) == (None, 1, 0)


@pytest.mark.parametrize("rule", [WARM, SUSTAINED])
@pytest.mark.parametrize(("model", "settled"), [("clock states", 0.1), ("neighbour", 0.6)])
def test_where_nothing_settles_the_interval_is_wide_and_mostly_says_so(rule: str, model: str, settled: float) -> None:
    cell = found(rule, model)
    assert cell.coverage_fraction >= LEAST
    assert cell.converged_fraction < settled
    assert cell.misleading_fraction < 0.06


@pytest.mark.parametrize(("model", "tick"), [("quantised", 0.005), ("timer", 0.0005)])
def test_an_interval_is_never_narrower_than_a_step_of_the_timer(model: str, tick: float) -> None:
    """The truth lies half-way between two steps, or next to one: medians that all fall on one step must not exclude it."""
    assert MODELS[model].tick == tick
    for rule in (WARM, SUSTAINED):
        assert found(rule, model).coverage_fraction > 0.97


def test_what_is_slower_than_the_whole_measurement_is_not_seen_in_its_times() -> None:
    """The limit that the documentation tells of: the soak's thermometer and clock are there for it, not the interval."""
    assert not MODELS["swing 60 s"].promised
    assert found(WARM, "swing 60 s").coverage_fraction < 0.5


@pytest.mark.parametrize("model", traces.MODELS, ids=lambda m: m.name)
def test_the_truths_are_those_of_a_long_run(model: Any) -> None:
    times = model.stream(np.random.default_rng(7), 400, 5000)
    assert times.mean() == pytest.approx(model.mean, abs=1e-3)
    if model.middle != model.mean:
        assert np.median(times) == pytest.approx(model.middle, abs=6e-4)


def test_the_script_prints_its_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MODELS", traces.MODELS[:1])
    assert coverage.main(["--trials", "20", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| noise | fixed 100")
    assert lines[2].startswith("| iid |")
    assert coverage.main(["--trials", "20"]) == 0
    assert "settled and wrong" in capsys.readouterr().out


def test_no_trials_are_refused() -> None:
    with pytest.raises(SystemExit):
        coverage.main(["--trials", "0"])
