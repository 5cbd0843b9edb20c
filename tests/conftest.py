import numpy as np
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


def _seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (what libraries draw from)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    """Weights that a fixture draws are the same in each run and in any order of the tests."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    """And those that a test draws."""
    _seed()


@pytest.fixture
def counting():
    """A wrapper that counts what a decoder is asked."""
    return Counting
