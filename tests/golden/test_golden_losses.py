"""Twenty steps of small runs: every metric that no clock has measured, losses and gradient norms among them."""

import pytest
from entries import metrics
from small_runs import RUNS


@pytest.mark.parametrize("name", RUNS)
def test_metrics(name, trained, data, golden):
    golden(f"losses/{name}", {stage: metrics(trained(name), stage) for stage in RUNS[name](data)["stages"]})
