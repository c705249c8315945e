"""The engine `triton`: its cases run through Triton's interpreter and on a GPU, its kernel compiled
for one that need not be here, and how it is chosen."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_model import exported
from vconv import engine_choice
from vconv.bundle import Bundle
from vconv.engine_choice import doubt_of, engine_for, wrong_draws
from vconv.engines import base, create_engine
from vconv.errors import SetupError, UsageError
from vconv.golden import Golden

pytest.importorskip("triton", reason="triton is not installed")

CASES = Path(__file__).with_name("triton_cases.py")
SHARED_MEMORY = 227 * 1024  # bytes of a program on compute capability 9.0


def run_cases(**environment: str) -> None:
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CASES)],
        cwd=CASES.parents[2],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


def test_the_kernel_does_what_it_should_in_the_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1", VCONV_TRITON_DEVICE="cpu")


@pytest.mark.gpu
def test_the_kernel_does_what_it_should_compiled() -> None:
    run_cases(TRITON_INTERPRET="0", VCONV_TRITON_DEVICE="cuda")


@pytest.mark.parametrize("preset", ["base", "paper"])
def test_the_kernel_compiles_for_a_gpu_and_fits_its_shared_memory(preset: str) -> None:
    from triton_compiling import compiled

    kernel = compiled(preset, "bf16")
    assert 0 < kernel.metadata.shared <= SHARED_MEMORY
    ptx = kernel.asm["ptx"]
    assert "mma" in ptx
    assert "bf16" in ptx
    assert "cp.async" in ptx


def weights() -> dict[str, Any]:
    return Bundle.find(exported()).weights("decoder.wavenet.")


def options() -> dict[str, Any]:
    return Bundle.find(exported()).engine_options()


def test_it_runs_on_no_cpu_and_on_no_gpu_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="runs on a GPU only"):
        create_engine("triton", weights(), **options(), device="cpu")
    with pytest.raises(SetupError, match="cuda:99 was asked for"):
        create_engine("triton", weights(), **options(), device="cuda:99")
    with pytest.raises(UsageError, match="int8 is a precision of the native engine"):
        create_engine("triton", weights(), **options(), device="cuda", precision="int8")


def test_without_triton_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    find = base.importlib.util.find_spec
    monkeypatch.setattr(
        base.importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
    )
    with pytest.raises(SetupError, match="needs triton"):
        create_engine("triton", weights(), **options(), device="cuda")


def test_bf16_is_taken_by_itself_where_it_is_cheap_or_nobody_has_said() -> None:
    assert base._precision("auto", None, engine="triton") == "bf16"
    assert base._precision("auto", {"bf16": 0.001}, engine="triton") == "bf16"
    assert base._precision("auto", {"bf16": 0.02}, engine="triton") == "fp32"
    assert base._precision("auto", {}, engine="triton") == "fp32"


# ---- the choice ---------------------------------------------------------------------------------


class Standing:
    """For the Triton engine on a GPU: another, of one lane said for all, with a fault if wanted."""

    def __init__(self, fault: str) -> None:
        self.inner = create_engine("torchscript", weights(), **options())
        self.fault = fault
        self.name, self.precision = "triton", "bf16" if fault == "lossy" else "fp32"
        self.levels, self.hop = self.inner.levels, self.inner.hop

    def initial_state(self, lanes: int) -> Any:
        return self.inner.initial_state(1)

    def score(self, conditioning: Any, codes: Any, state: Any) -> Any:
        if self.fault == "compiler":
            raise RuntimeError("ptxas failed\nwith a long story")
        logits, after = self.inner.score(conditioning[:1], codes[:1], state)
        logits = np.repeat(logits, len(codes), axis=0)
        if self.fault == "logits":
            logits[0, 500, 3] += 1e-3
        if self.fault == "lossy":
            logits[:, :, 3] += 1
        if self.fault == "lanes":
            logits[17, 900, 3] += 1e-6
        return logits, after

    def generate(self, conditioning: Any, uniforms: Any, temperature: float, state: Any) -> Any:
        if self.fault == "draws":
            uniforms = uniforms * np.float32(0.9)
        codes, after = self.inner.generate(conditioning[:1], uniforms[:1], temperature, state)
        return np.repeat(codes, len(uniforms), axis=0), after


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", None),
        ("logits", "its logits differ from golden's by 0.001"),
        ("lossy", "nats of golden's"),
        ("lanes", "lanes that are alike differ"),
        ("draws", "draws are not those of the uniforms"),
        ("compiler", r"it failed with RuntimeError \(ptxas failed\)"),
    ],
)
def test_on_a_gpu_it_is_chosen_only_after_it_has_reproduced_golden(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    said: str | None,
) -> None:
    def made(name: str, *_: Any, **__: Any) -> Any:
        return Standing(fault) if name == "triton" else name

    monkeypatch.setattr(engine_choice, "create_engine", made)
    bundle = Bundle.find(exported())
    with caplog.at_level(logging.WARNING, "vconv"):
        chosen: Any = engine_for(bundle, name="auto", device="cuda", precision="auto")
    if said is None:
        assert chosen.name == "triton"
        assert not caplog.records
        return
    assert chosen == "torchscript"
    (record,) = caplog.records
    assert re.search(said, record.getMessage())
    # Asked for by name, it is what it is.
    assert isinstance(engine_for(bundle, name="triton", device="cuda", precision="auto"), Standing)


def test_a_gpu_that_is_not_there_is_an_error_and_no_choice() -> None:
    with pytest.raises(SetupError, match="cuda:99"):
        engine_for(Bundle.find(exported()), name="auto", device="cuda:99", precision="auto")


def test_wrong_draws_are_counted_but_not_those_on_a_step() -> None:
    logits = np.log(np.array([[0.25, 0.25, 0.5]] * 4, np.float32))
    uniforms = np.array([0.1, 0.3, 0.9, 0.25], np.float32)
    assert wrong_draws(logits, np.array([0, 1, 2, 0], np.uint8), uniforms) == 0
    assert wrong_draws(logits, np.array([0, 2, 1, 1], np.uint8), uniforms) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_reproduces_the_bundled_model_on_a_gpu(precision: str) -> None:
    bundle = Bundle.find("demo")
    engine = create_engine(
        "triton",
        bundle.weights("decoder.wavenet."),
        **bundle.engine_options(),
        device="cuda",
        precision=precision,
    )
    golden = Golden.from_bytes(bundle.read("golden.npz"), "golden.npz")
    assert doubt_of(engine, bundle, golden) is None
    assert torch.cuda.is_available()
