"""Which engine draws: the one asked for, or on a GPU `triton` once it has shown itself right there.

B lanes, T samples, Q levels.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np

from .bundle import GOLDEN, Bundle
from .engines import Codes, Engine, create_engine
from .errors import SetupError, UsageError
from .golden import LOGIT_STEPS, Floats, Golden, golden_plan

MAX_DIFFERENCE = 1e-4  # of fp32's logits from golden's
# Of bf16: nats a sample of golden's distribution. The bundled model loses 0.00006 by rounding, and
# what a precision may cost at all is 0.01.
MAX_LOST = 1e-3
MARGIN = 1e-4  # of probability, by which a uniform must lie off a step to decide a draw
_LANES = 33  # of whatever size a program's share is, several programs and one not full

log = logging.getLogger("vconv")


def engine_for(bundle: Bundle, *, name: str, device: str, precision: str) -> Engine:
    """The engine of that name for a bundle on "cpu", "cuda" or "cuda:N".

    "auto" on a GPU is `triton` if it reproduces the bundle's golden figures there, and else, after
    a warning that says what was wrong, `torchscript`. For all else, and for what is raised, see
    ``create_engine``.
    """

    def made(name: str) -> Engine:
        return create_engine(
            name,
            bundle.weights("decoder.wavenet."),
            **bundle.engine_options(),
            device=device,
            precision=precision,
            costs={str(key): cost for key, cost in bundle.manifest.precisions.items()},
        )

    if name != "auto" or device == "cpu" or importlib.util.find_spec("triton") is None:
        return made(name)
    golden = Golden.from_bytes(bundle.read(GOLDEN), str(bundle.path / GOLDEN))
    try:
        engine = made("triton")
        doubt = doubt_of(engine, bundle, golden)
    except (SetupError, UsageError):
        raise
    except Exception as error:  # whatever a compiler, a driver or a launch may raise
        first = next(iter(str(error).splitlines()), "")
        doubt = f"it failed with {type(error).__name__}" + (f" ({first[:200]})" if first else "")
    if doubt is None:
        return engine
    log.warning("the triton engine is left out on %s: %s; torchscript draws.", device, doubt)
    return made("torchscript")


def doubt_of(engine: Engine, bundle: Bundle, golden: Golden) -> str | None:
    """What an engine does not reproduce of golden, in a few words; None where it reproduces all.

    Its logits under golden's codes, and, under its own history, its draws from its own logits, in
    lanes that are alike and in two calls where one would do.
    """
    plan, samples = golden_plan(bundle.geometry)
    given = golden.conditioning[plan.skip : plan.skip + plan.steps]
    conditioning = np.repeat(given[None], _LANES, axis=0)
    forced = np.repeat(golden.forced[None], _LANES, axis=0)
    logits, _ = engine.score(conditioning, forced, engine.initial_state(_LANES))
    found = logits[0, :LOGIT_STEPS]
    if engine.precision == "fp32":
        away = float(np.abs(found - golden.logits).max())
        if not away <= MAX_DIFFERENCE:
            return f"its logits differ from golden's by {away:.2g}, {MAX_DIFFERENCE:g} are allowed"
    else:
        lost = nats_lost(golden.logits, found)
        if not lost <= MAX_LOST:
            return f"its logits lose {lost:.2g} nats of golden's, {MAX_LOST:g} are allowed"
    if not (logits == logits[:1]).all():
        return "lanes that are alike differ"

    # A whole number of frames, somewhere in the middle.
    cut = samples // engine.hop // 2 * engine.hop
    uniforms = np.random.default_rng(1).random(samples, np.float32)
    drawn, state = [], engine.initial_state(_LANES)
    for first, last in ((0, cut), (cut, samples)):
        steps = slice(first // engine.hop, last // engine.hop + (engine.hop > 1))
        several = np.repeat(uniforms[None, first:last], _LANES, axis=0)
        piece, state = engine.generate(conditioning[:, steps], several, 1.0, state)
        drawn.append(piece)
    codes: Any = np.concatenate(drawn, axis=1)
    if not (codes == codes[:1]).all():
        return "lanes that are alike draw differently"
    own, _ = engine.score(conditioning[:1], codes[:1], engine.initial_state(1))
    wrong = wrong_draws(own[0], codes[0], uniforms)
    return f"{wrong} of {samples} draws are not those of the uniforms" if wrong else None


def wrong_draws(logits: Floats, codes: Codes, uniforms: Floats) -> int:
    """Logits [T, Q], codes and uniforms [T] -> how many codes are not the smallest whose cumulative
    probability exceeds the uniform, where it lies more than MARGIN off a step."""
    odds = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    steps = (odds / odds.sum(1, keepdims=True)).cumsum(1)
    wanted = np.minimum((steps <= uniforms[:, None]).sum(1), logits.shape[1] - 1)
    clear = np.abs(steps - uniforms[:, None]).min(1) > MARGIN
    return int((clear & (wanted != codes)).sum())


def nats_lost(wanted: Floats, found: Floats) -> float:
    """D(wanted || found) of logits [T, Q], as a mean over the steps."""

    def log_p(logits: Floats) -> Any:
        exact = logits.astype(np.float64)
        return exact - np.logaddexp.reduce(exact, 1, keepdims=True)

    p, q = log_p(wanted), log_p(found)
    return float((np.exp(p) * (p - q)).sum(1).mean())
