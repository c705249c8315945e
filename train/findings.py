"""What is wrong with a run, in words, from the figures that it logs: pure functions.

The thresholds stand beside their reasons. A healthy run meets none of them, a young one neither:
nothing is judged before its warm-up is over and has had time to work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vconv.config import Config

Row = Mapping[str, float]  # what was logged at a step, the step among it
Verdicts = dict[str, str | None]

# Steps after all warm-ups before units are judged. 200 and 300 steps after their codebooks' start
# small runs had perplexities of 24 and more on held-out speech, the VAE 50 active units.
_SETTLED = 200
# Codes that speech of 50 units a second cannot do with: 3 bits a unit, and less than half of a
# language's sounds. Of a codebook that is small on purpose, a quarter.
_FEW_PERPLEXITY, _FEW_CODES = 8, 16
# Steps after all warm-ups before the decoder must listen. 400 steps into small runs the intervals
# began 0.18 nats above zero for the units, 0.018 for the speaker, who is heeded later; 1,000 steps
# into a smaller one, which learned slowly, 0.09 and 0.027.
_LISTENS_AFTER = {"latents": 1000, "speaker": 3000}
# Sound layers had at most an eighth, at any age. Half is a loss of capacity that shows.
_DEAD_SHARE = 0.5
# The held-out windows are the same each time, so their likelihood moves without noise.
_OVERFIT_NATS = 0.02
_OVERFIT_VALIDATIONS = 3  # in a row after the best one
# Ten steps of a tenth leave nothing of what was learned. Healthy: 0.016 at most.
_LARGE_UPDATE = 0.1
# Of the learning rate, so that a decaying rate is no finding. Adam moves a weight by about the
# rate, less where gradients disagree, and weights are of the order of 0.1 to 1: healthy ratios
# were 0.18 to 27 rates. Where no gradient comes, weight decay alone is left, 0.01 by default.
_SMALL_UPDATE = 0.02
_WAITING = 0.3  # of the time: the same machine could train 1.4 times as fast
_CLIPPED = 0.95  # of the steps: the rate is then set by the clipping, not by the learning rate
LOGS = 5  # in a row, of what is logged often: one slow minute is no finding


def judge(logs: Sequence[Row], validations: Sequence[Row], config: Config) -> Verdicts:
    """What is wrong, by name: a sentence with the figures and what to try, or None where all is
    well; a name is missing where nothing can be said yet.

    logs: the newest logged rows, the newest last, validations: all validated ones likewise, each
    with the mean training ``nll`` since the one before.
    """
    verdicts: Verdicts = {}
    if validations:
        now = validations[-1]
        settled = now["step"] - _warm_up(config)
        if settled >= _SETTLED:
            verdicts |= _codebook(now, config) | _posterior(now) | _dead(now)
        for probe, steps in _LISTENS_AFTER.items():
            if settled >= steps:
                verdicts |= _deaf(now, probe)
        verdicts |= _overfitting(validations)
    recent = logs[-LOGS:]
    if len(recent) == LOGS:
        warm = recent[0]["step"] >= config.train.warmup
        verdicts |= _waiting(recent, config)
        if warm:
            verdicts |= _clipping(recent, config) | _updates(recent, config)
    return verdicts


def _warm_up(config: Config) -> int:
    """Steps until the learning rate, the codebook and the KL's weight are where they stay."""
    bottleneck = config.model.bottleneck
    kind = None if config.model.inverter else bottleneck.kind
    own = {"vq": bottleneck.warmup_steps, "vae": bottleneck.kl_warmup}.get(kind or "", 0)
    return max(config.train.warmup, own)


def _codebook(now: Row, config: Config) -> Verdicts:
    size = config.model.codes
    if size is None or "heldout_perplexity" not in now:
        return {}
    perplexity, used = now["heldout_perplexity"], round(now["heldout_codes_used"] * size)
    if perplexity >= min(_FEW_PERPLEXITY, size / 4) and used >= min(_FEW_CODES, size / 4):
        return {"codebook": None}
    remedy = (
        "try a longer model.bottleneck.warmup_steps, a higher restart_below or a lower "
        "train.learning_rate, or kind: fsq, whose codes cannot die"
        if config.model.bottleneck.kind == "vq"
        else "try a lower train.learning_rate, and see whether the encoder's layers are dead"
    )
    return {
        "codebook": f"the codebook has collapsed: {used:,} of {size:,} codes are used on held-out "
        f"speech, perplexity {perplexity:.1f}; {remedy}."
    }


def _posterior(now: Row) -> Verdicts:
    if "heldout_active_dimensions" not in now:
        return {}
    if now["heldout_active_dimensions"] >= 1:
        return {"posterior": None}
    return {
        "posterior": "the posterior has collapsed: no dimension of the units is active on held-out "
        f"speech (KL {now['heldout_kl']:.3f} nats a unit); try a lower model.bottleneck.kl_weight, "
        "a longer kl_warmup, or free_bits above 0."
    }


def _dead(now: Row) -> Verdicts:
    """Of layers, whose names end with a number; a part's own share is their mean."""
    shares = {
        name.removeprefix("dead_"): share
        for name, share in now.items()
        if name.startswith("dead_") and name[-1].isdigit()
    }
    if not shares:
        return {}
    dead = [name for name, share in shares.items() if share > _DEAD_SHARE]
    if not dead:
        return {"dead": None}
    worst = max(dead, key=lambda name: shares[name])
    others = f" and {len(dead) - 1} more layers" if len(dead) > 1 else ""
    return {
        "dead": f"{shares[worst]:.0%} of the channels of {worst}{others} are dead on held-out "
        "speech: they always say the same; try a lower train.learning_rate or a longer "
        "train.warmup, and start anew, for dead channels hardly recover."
    }


def _deaf(now: Row, probe: str) -> Verdicts:
    name = f"probe_{probe}"
    if f"{name}_low" not in now:
        return {}
    gap, low, high = now[name], now[f"{name}_low"], now[f"{name}_high"]
    if low > 0:
        return {name: None}
    what, change, remedy = {
        "latents": (
            "the units",
            "another utterance's units",
            "try a smaller decoder or receptive field (model.decoder.layers), kind: ae to see "
            "whether anything passes, and look at dead channels and codes in use",
        ),
        "speaker": (
            "who speaks",
            "another speaker",
            "the units may tell it already: try a narrower bottleneck, data.augment, or check "
            "that the corpus names its speakers rightly",
        ),
    }[probe]
    return {
        name: f"the decoder ignores {what}: with {change} held-out speech is predicted {gap:+.4f} "
        f"nats a sample worse (95 % interval {low:+.4f} to {high:+.4f}), which may be nothing; "
        f"{remedy}."
    }


def _overfitting(validations: Sequence[Row]) -> Verdicts:
    best = min(validations, key=lambda row: row["heldout_nll"])
    since = [row for row in validations if row["step"] > best["step"]]
    if len(since) < _OVERFIT_VALIDATIONS:
        return {"overfitting": None}
    now = since[-1]
    lost = min(row["heldout_nll"] for row in since[-_OVERFIT_VALIDATIONS:]) - best["heldout_nll"]
    # Without the second condition, any change that makes the task harder would be one.
    learned = best.get("nll", math.nan) - now.get("nll", math.nan)
    if not (lost >= _OVERFIT_NATS and learned >= _OVERFIT_NATS):
        return {"overfitting": None}
    return {
        "overfitting": f"the model overfits: held-out likelihood was best at step "
        f"{best['step']:,.0f} ({best['heldout_nll']:.3f} nats a sample) and is "
        f"{now['heldout_nll']:.3f} now, while training went from {best['nll']:.3f} to "
        f"{now['nll']:.3f}; stop here (train.keep_best has kept the best), or try more speech, "
        "data.augment, more train.weight_decay or a smaller model."
    }


def _waiting(recent: Sequence[Row], config: Config) -> Verdicts:
    shares = [row.get("data_wait", 0.0) for row in recent]
    if min(shares) < _WAITING:
        return {"data_wait": None}
    workers = config.data.workers
    return {
        "data_wait": f"{shares[-1]:.0%} of the time is spent waiting for data; raise data.workers "
        f"(now {workers}), put the corpus on a faster disk, or take out of data.augment what "
        "costs most."
    }


def _clipping(recent: Sequence[Row], config: Config) -> Verdicts:
    if not all("clipped" in row for row in recent):
        return {}
    share = sum(row["clipped"] for row in recent) / len(recent)
    if share < _CLIPPED:
        return {"clipping": None}
    norm = sum(row["gradient_norm"] for row in recent) / len(recent)
    return {
        "clipping": f"{share:.0%} of the steps have their gradient clipped (mean norm {norm:.2g}, "
        f"train.clip {config.train.clip:g}); try a lower train.learning_rate or a longer "
        "train.warmup, or a higher train.clip if the loss falls steadily."
    }


def _updates(recent: Sequence[Row], config: Config) -> Verdicts:
    verdicts: Verdicts = {}
    floor = max(_SMALL_UPDATE, 1.5 * config.train.weight_decay)
    for name in [key for key in recent[-1] if key.startswith("update_")]:
        part = name.removeprefix("update_")
        moved = [row[name] for row in recent if name in row]
        # At the very end the rate is next to nothing.
        rates = [row["learning_rate"] for row in recent if name in row]
        relative = [x / rate for x, rate in zip(moved, rates, strict=True) if rate > 0]
        verdicts[name] = None
        if len(moved) == LOGS and min(moved) > _LARGE_UPDATE:
            verdicts[name] = (
                f"each step changes the {part}'s weights by {moved[-1]:.0%} of their size; "
                f"try a lower train.learning_rate (now {rates[-1]:g})."
            )
        elif len(relative) == LOGS and max(relative) < floor:
            verdicts[name] = (
                f"the {part} hardly learns: a step changes its weights by {moved[-1]:.1e} of their "
                f"size, {relative[-1]:.3f} learning rates, little more than weight decay; no "
                "gradient may reach it: look at dead channels and the listening probes."
            )
    return verdicts
