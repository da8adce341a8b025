"""What every test and every notebook cell under pytest shares: the embedded lines, and charts that go elsewhere."""

import os
import tempfile

import pytest

_CHARTS = tempfile.TemporaryDirectory(prefix="hwr-charts-")  # removed when Python ends
ENVIRONMENT = {"HWR_CHARTS": _CHARTS.name, "HWR_DATA": "sample", "MPLBACKEND": "agg"}
os.environ.update(ENVIRONMENT)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before every item, not once: whatever a test has changed, a notebook's kernel still starts with these."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name != "MPLBACKEND"})
