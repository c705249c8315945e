"""What a reduced precision costs, who may have it, and who is refused."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_model import exported, reseal
from tiny_training import parts, tiny_config
from vconv import load
from vconv.bundle import Bundle
from vconv.engines import base
from vconv.errors import UsageError
from vconv.export.precision import precision_costs
from vconv.export.verify import verify
from vconv.input_level import speech_level
from vconv.train.batches import held_out
from vconv.train.checkpoint import save_checkpoint
from vconv.train.speech import heldout_level, heldout_speech
from vconv.train.validate import validate
from voices import PITCHES, prepared

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


@pytest.mark.parametrize("member", ["vq", "pitch", "transposed_inverter"])
def test_a_cost_is_the_held_out_likelihood_that_rounded_weights_lose(corpus_path, member):
    """For bf16 against the eager network with its weights rounded, scored as training scores."""
    config = tiny_config(corpus_path, member)
    state, batches = parts(config)
    network = state.average
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # peaked and far from zero, so that rounding shows
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        network.decoder.wavenet.logits.weight.mul_(4)
    heldout = held_out(batches.excerpts, 6, 4)
    assert heldout is not None
    costs = precision_costs(network, config.model, heldout.batches, config.data.window)

    rounded = copy.deepcopy(network)
    projects = network.geometry.conditioning_hop == 1
    with torch.no_grad():
        for name, parameter in rounded.decoder.wavenet.named_parameters():
            # The exported conditioner projects in full precision, and the embedding is looked up.
            here = projects or ".condition." not in name
            if parameter.ndim == 2 and "embedding" not in name and here:
                parameter.copy_(parameter.bfloat16().float())

    def nll(each: torch.nn.Module) -> float:
        scored = validate(each, heldout, batches.excerpts, CPU, autocast=False)  # type: ignore[arg-type]
        return float(scored.true.mean())

    lost = nll(rounded) - nll(network)
    assert abs(lost) > 1e-4
    assert costs["bf16"] == pytest.approx(lost, abs=2e-5)
    assert np.isfinite(costs["int8"])


def test_held_out_speech_is_that_of_the_checkpoints_own_corpus(corpus_path, tmp_path):
    config = tiny_config(corpus_path)
    state, batches = parts(config)

    def saved(folder: str, digest: str, **data: str) -> Path:
        changed = config.model_copy(update={"data": config.data.model_copy(update=data)})
        facts = {"corpus": {"digest": digest}}
        return save_checkpoint(tmp_path / folder, state, changed, tuple(PITCHES), facts)

    digest = batches.excerpts.corpus.digest
    right = saved("right", digest)
    found = heldout_speech(right)
    assert not isinstance(found, str)
    speech, window = found
    assert window == config.data.window
    expected = held_out(batches.excerpts, 64, 8)
    assert expected is not None
    assert sum(len(batch.wav) for batch in speech) == expected.count
    assert torch.equal(speech[0].codes, expected.batches[0].codes)
    corpus = batches.excerpts.corpus
    wavs = [
        corpus.excerpt(int(u), 0, int(corpus.utterances.length[u]))
        for u in np.flatnonzero(corpus.utterances.heldout)
    ]
    assert heldout_level(right) == pytest.approx(speech_level(wavs), abs=0.01)
    other = saved("other", "0" * 64)
    assert "is another corpus" in str(heldout_speech(other))
    assert heldout_level(other) is None
    gone = heldout_speech(saved("gone", digest, corpus="nowhere"))
    assert gone == "its corpus, nowhere, is not there"


@pytest.fixture
def judged(tmp_path) -> Path:
    """A bundle that says what its reduced precisions cost: bf16 little, int8 too much."""
    folder = tmp_path / "judged"
    shutil.copytree(exported(), folder)
    return reseal(folder, precisions={"bf16": 0.001, "int8": 0.02})


def test_a_precision_that_costs_too_much_or_was_not_judged_is_refused(judged):
    assert load(judged, precision="bf16").precision == "bf16"
    with pytest.raises(UsageError, match=r"int8 costs this model 0\.020 nats a sample, 0\.01 are"):
        load(judged, precision="int8")
    with pytest.raises(UsageError, match="bf16 was not judged"):
        load(exported(), precision="bf16")
    with pytest.raises(UsageError, match="there is no precision 'fp16'; choose one of auto, fp32"):
        load(judged, precision="fp16")
    with pytest.raises(UsageError, match="bf16 is a precision of the native and triton engines"):
        load(judged, precision="bf16", engine="torchscript")


def test_by_default_bytes_are_taken_where_they_cost_little_and_run_fast(judged, monkeypatch):
    assert load(judged).precision == "fp32"
    cheap = reseal(judged, precisions={"int8": 0.002})
    for cpu, expected in (("avx2", "int8"), ("avx512vnni", "int8"), ("generic", "fp32")):
        monkeypatch.setattr(base, "_best_cpu", lambda cpu=cpu: cpu)
        assert load(cheap).precision == expected
    assert load(cheap, engine="torchscript").precision == "fp32"


def test_verify_holds_each_precision_that_is_judged_against_golden(judged):
    names = [each.name for each in verify(judged) if "nats a sample lost" in each.name]
    assert [name.split(":")[0] for name in names] == [
        "native engine, bf16",
        "native engine, int8",
    ]
    assert all(each.passed for each in verify(judged))
    assert Bundle.open(judged).manifest.precisions == {"bf16": 0.001, "int8": 0.02}
