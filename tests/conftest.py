"""What every test runs under: one thread each, the same examples every time, GPU tests on GPUs."""

import os

# Before numpy or torch are loaded: the suite shares its cores, and small tensors gain nothing.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings

settings.register_profile("vconv", deadline=None, derandomize=True, database=None)
settings.load_profile("vconv")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
