"""The stopping rule holds the truth on noise where others do not."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TRIALS = 120
FOLDER = str(Path(__file__).parent.parent / "benchmarks")


def module(name: str) -> Any:
    """Import a script of benchmarks/, which is no package."""
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(FOLDER)


coverage, traces = module("coverage"), module("traces")
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


@pytest.mark.parametrize("model", ["iid", "spikes", "AR(1)", "thermal drift", "heavy tail"])
def test_the_sustained_interval_holds_the_truth_where_the_device_settles(model: str) -> None:
    assert found(SUSTAINED, model).coverage_fraction >= LEAST


def test_without_a_soak_a_warming_device_is_refused_not_averaged() -> None:
    cell = found(COLD, "thermal drift")
    assert (cell.coverage_fraction, cell.refused_fraction, cell.misleading_fraction) == (None, 1, 0)


@pytest.mark.parametrize("model", ["clock states", "neighbour"])
def test_where_nothing_settles_the_interval_is_wide_and_mostly_says_so(model: str) -> None:
    cell = found(WARM, model)
    assert cell.coverage_fraction > 0.87 - 3 * math.sqrt(0.87 * 0.13 / TRIALS)  # clock states: 87 % in 1000 trials
    assert cell.misleading_fraction < 0.15


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
