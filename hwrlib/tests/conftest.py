"""What more than one test module needs."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """A single thread: small networks train faster so, and always add up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
