"""What every test and every cell of a notebook shares, which no conftest.py reaches: the sample, charts elsewhere."""

import os
import tempfile

import pytest

LONGEST = ["08_teach_it_your_hand", "test_archive", "06_analyse_the_errors", "test_scripts"]  # over a minute
LONGEST += ["05_decode_with_ctc", "09_read_an_archive", "02_prepare_the_images", "04_train_on_colab", "test_training"]
LONGEST += ["test_browser"]
_CHARTS = tempfile.TemporaryDirectory(prefix="hwr-charts-")  # removed when Python ends
ENVIRONMENT = {"HWR_CHARTS": _CHARTS.name, "HWR_DATA": "sample"}
os.environ.update(ENVIRONMENT, MPLBACKEND="agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # each core has a worker; more threads than cores would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before every item, not once: whatever a test has changed, a notebook's kernel still starts with these."""
    os.environ.update(ENVIRONMENT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that all workers end at about the same time."""
    items.sort(key=lambda item: [*LONGEST, item.path.stem].index(item.path.stem))
