"""The wiring that a falling loss does not prove: who conditions whom, where and when."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from networks import network, speech
from tiny_model import MEMBERS
from vconv.geometry import Span

WINDOW = 640
FAMILY = pytest.mark.parametrize("member", MEMBERS)


def case(model, batch: int = 3):
    """wav, inputs, targets and speakers of random windows."""
    geometry = model.geometry
    plan = geometry.plan(WINDOW, lead=geometry.lead_samples)
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(256, (batch, WINDOW + geometry.receptive_field), generator=generator)
    speakers = torch.arange(batch) % model.speakers.num_embeddings
    steps = slice(plan.skip, plan.skip + plan.steps)
    return speech(batch, plan.wav_length), codes[:, :-1], codes[:, -WINDOW:], speakers, steps


def unit_span(geometry, plan, step: int) -> Span:
    """The units, counted from the excerpt's first, that used conditioning step ``step`` reads."""
    made = geometry.conditioner.outputs(Span(0, plan.units))
    first = made.start + plan.skip + step
    return geometry.conditioner.inputs(Span(first, first + 1))


def units_of(model, wav, speakers):
    return torch.cat([model.encode(wav).z, model.prosody(wav, speakers)], dim=1)


def logits_of(model, wav, inputs, speakers, steps, units=None):
    units = units_of(model, wav, speakers) if units is None else units
    return model.decode(
        units,
        model.speaker_vectors(speakers),
        inputs,
        model.decoder.wavenet.no_context(len(inputs)),
        steps=steps,
        wanted=WINDOW,
    )


@FAMILY
def test_permuting_the_batch_permutes_the_logits(member):
    model = network(member)
    wav, inputs, _, speakers, steps = case(model, 4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = logits_of(model, wav[order], inputs[order], speakers[order], steps)
    whole = logits_of(model, wav, inputs, speakers, steps)
    torch.testing.assert_close(permuted, whole[order], rtol=0, atol=1e-5)


@FAMILY
@pytest.mark.parametrize("unit", [1, 3, 5])
def test_a_latent_changes_only_its_item_and_only_its_window(member, unit):
    model = network(member)
    wav, inputs, _, speakers, steps = case(model)
    z = units_of(model, wav, speakers).detach()
    changed = z.clone()
    changed[1, :, unit] += 1.0
    before = logits_of(model, wav, inputs, speakers, steps, z)
    after = logits_of(model, wav, inputs, speakers, steps, changed)
    difference = (after - before).abs().amax(2)
    assert difference[0].max() == 0
    assert difference[2].max() == 0
    geometry = model.geometry
    touched = difference[1].nonzero()[:, 0]
    reach = geometry.receptive_field - 1
    # Conditioning step s of the chunk serves the samples between its neighbours; every output
    # whose receptive field holds one of them may change, no other may.
    plan = geometry.plan(WINDOW, lead=geometry.lead_samples)
    reads = [
        step
        for step in range(plan.steps)
        if (span := unit_span(geometry, plan, step)).start <= unit < span.stop
    ]
    hop = geometry.conditioning_hop
    first = max(0, (reads[0] - 1) * hop + 1 - geometry.lead_samples)
    last = min(WINDOW - 1, (reads[-1] + 1) * hop - 1 + reach - geometry.lead_samples)
    assert len(touched) > 0
    assert first <= int(touched[0])
    assert int(touched[-1]) <= last


@FAMILY
def test_every_channel_of_the_units_gets_a_gradient(member):
    model = network(member)
    wav, inputs, targets, speakers, steps = case(model)
    z = units_of(model, wav, speakers).detach().requires_grad_()
    logits = logits_of(model, wav, inputs, speakers, steps, z)
    functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    assert (z.grad.abs().sum((0, 2)) > 0).all()


@FAMILY
def test_another_speaker_changes_the_logits_of_its_item_only(member):
    model = network(member)
    wav, inputs, _, speakers, steps = case(model)
    other = speakers.clone()
    other[1] = (other[1] + 1) % 4
    units = units_of(model, wav, speakers)
    before = logits_of(model, wav, inputs, speakers, steps, units)
    after = logits_of(model, wav, inputs, other, steps, units)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert (before[1] - after[1]).abs().max() > 1e-3


@FAMILY
def test_the_loss_of_a_batch_is_the_mean_of_its_items(member):
    model = network(member)
    wav, inputs, targets, speakers, steps = case(model)

    def loss(rows: slice) -> torch.Tensor:
        logits = logits_of(model, wav[rows], inputs[rows], speakers[rows], steps)
        return functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())

    items = torch.stack([loss(slice(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(loss(slice(None)), items.mean(), rtol=1e-5, atol=1e-6)


@FAMILY
def test_the_loss_of_a_window_is_the_mean_of_its_halves(member):
    model = network(member)
    wav, inputs, _, speakers, steps = case(model)
    whole = logits_of(model, wav, inputs, speakers, steps)
    geometry = model.geometry
    half = WINDOW // 2
    plan = geometry.plan(half, lead=geometry.lead_samples)
    inner = slice(plan.skip, plan.skip + plan.steps)
    parts = []
    for first in (0, half):
        excerpt = wav[:, first : first + plan.wav_length]
        ins = inputs[:, first : first + half + geometry.receptive_field - 1]
        parts.append(
            model.decode(
                units_of(model, excerpt, speakers),
                model.speaker_vectors(speakers),
                ins,
                model.decoder.wavenet.no_context(3),
                steps=inner,
                wanted=half,
            )
        )
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-4)


def test_speaker_rows_equal_brute_force_for_any_shape_of_indices():
    model = network()
    for shape in [(), (3,), (2, 3), (2, 1, 4)]:
        indices = torch.randint(4, shape)
        rows = model.speaker_vectors(indices)
        assert rows.shape == (*shape, 5)
        for index in np.ndindex(shape):
            assert torch.equal(rows[index], model.speakers.weight[int(indices[index])])


@FAMILY
def test_the_network_sees_the_units_at_the_right_time(member):
    """A click in the input changes conditioning around its own position in the output."""
    if member == "fsq":
        pytest.skip("its rounding hides a click from single units")
    model = network(member, quantised=False)
    geometry = model.geometry
    samples = 6400
    plan = geometry.plan(samples)
    wav = speech(1, plan.wav_length)
    clicked = wav.clone()
    at = 3200
    clicked[:, plan.left + at] += 5.0
    vectors = model.speaker_vectors(torch.tensor([0]))
    used = slice(plan.skip, plan.skip + plan.steps)
    speaker = torch.tensor([0])
    before = model.condition(units_of(model, wav, speaker), vectors)[:, used]
    after = model.condition(units_of(model, clicked, speaker), vectors)[:, used]
    energy = (after - before).square().sum(2)[0].detach()
    centre = float((energy * torch.arange(len(energy))).sum() / energy.sum())
    # An instance norm hears the click in all of its window, and weighs the ends differently.
    within = 640 if member == "instance_norm" else 320
    assert abs(centre * geometry.conditioning_hop - at) < within


def test_prosody_is_relative_to_the_speakers_own_pitch():
    model = network("pitch")
    time = torch.arange(8000) / 16000
    tone = torch.sin(2 * torch.pi * 180 * time)[None].repeat(2, 1)
    means = model.pitch.speaker_means[:2]
    prosody = model.prosody(tone, torch.arange(2))
    assert (prosody[:, 1] > 0.99).all()
    expected = torch.tensor(180.0).log2() - means
    torch.testing.assert_close(prosody[:, 0].mean(1), expected, rtol=0, atol=0.01)
    units = len(model.geometry.encoder.outputs(Span(0, 8000)))
    assert prosody.shape == (2, 2, units)


@FAMILY
def test_prosody_has_a_column_for_every_unit(member):
    model = network(member)
    shortest = len(model.geometry.unit_inputs(Span(0, 1)))
    for samples in (shortest, shortest + 1, shortest + 319, shortest + 320, 3 * shortest + 7):
        wav = speech(2, samples)
        units = model.encode(wav).z.shape[2]
        assert model.prosody(wav, torch.tensor([0, 1])).shape[2] == units


def test_pitch_is_heard_at_the_time_of_its_unit():
    """A tone that changes its pitch: the unit at the change lies half-way."""
    model = network("pitch")
    geometry = model.geometry
    time = torch.arange(16000) / 16000
    change = 8000
    hertz = torch.where(torch.arange(16000) < change, 120.0, 240.0)
    tone = torch.sin(2 * torch.pi * torch.cumsum(hertz, 0) / 16000)
    assert len(time) == len(tone)
    octaves = model.pitch(tone[None])[0, 0]
    place = torch.tensor([float(geometry.encoder.anchor(u)) for u in range(len(octaves))])
    wanted = torch.where(place < change, 120.0, 240.0).log2()
    clear = (place - change).abs() > 600  # half the analysis window
    assert (octaves - wanted)[clear].abs().max() < 0.03
    middle = place[int((octaves > torch.tensor(170.0).log2()).nonzero()[0, 0])]
    assert abs(middle - change) < 400
