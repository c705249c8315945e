"""What every test runs under: one thread each, the same examples every time, GPU tests on GPUs."""

import os

# Before numpy or torch are loaded: the suite shares its cores, and small tensors gain nothing.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings

from command_line import Done, Run

settings.register_profile("vconv", deadline=None, derandomize=True, database=None)
settings.load_profile("vconv")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: the exit code and what it printed."""
    from vconv import cli

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = cli._run([str(argument) for argument in arguments], debug=False)
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture
def convert(run: Run) -> Run:
    """``vconv convert`` with a tiny model, to one of its speakers."""
    from tiny_model import exported

    def call(*arguments: object) -> Done:
        return run("convert", *arguments, "-s", "bea", "-m", exported())

    return call
