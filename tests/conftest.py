import pytest
import torch

from benchmarks.counting import Counting


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small operations on two threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def counting():
    """A wrapper that counts what a decoder is asked."""
    return Counting
