"""Which input a span of output needs, and where it lies in time.

Framing, convolution, strided and transposed convolution answer the same two questions:
which input steps does this span of output steps need, and where in the input is its anchor?
A chain of layers is a fold over them. Everything that trims, pads, aligns or streams asks here:
training windows, the one-sample shift, chunks, the receptive field and the latency.

Index spaces are absolute: step 0 of every layer's output is the first that its input's step 0
allows. Positions are counted in steps of the chain's input (wav samples for the encoder).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

FRAME_LENGTH = 400  # samples: 25 ms at 16 kHz
FRAME_HOP = 160  # samples: 10 ms, 100 frames a second
UNIT_FRAMES = 2  # the encoder's total stride: 50 units a second (an inverter's are frames)


@dataclass(frozen=True)
class Span:
    """Steps start, start + 1, ..., stop - 1."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def shift(self, steps: int) -> Span:
        return Span(self.start + steps, self.stop + steps)


@dataclass(frozen=True)
class Layer:
    """A framing or convolution (output i reads inputs i*stride + j*dilation, j < kernel).

    A transposed one spreads input m over outputs m*stride ... m*stride + kernel - 1 and keeps
    only outputs to which all the inputs that could contribute do exist ("full overlaps").
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    transposed: bool = False

    def inputs(self, outputs: Span) -> Span:
        """The input steps that the (non-empty) span of outputs is computed from."""
        if self.transposed:
            return Span(
                -((self.kernel - 1 - outputs.start) // self.stride),
                (outputs.stop - 1) // self.stride + 1,
            )
        reach = (self.kernel - 1) * self.dilation
        return Span(outputs.start * self.stride, (outputs.stop - 1) * self.stride + reach + 1)

    def outputs(self, inputs: Span) -> Span:
        """The output steps that the span of inputs suffices for (may be empty)."""
        if self.transposed:
            # n needs ceil((n - kernel + 1) / stride) >= start and floor(n / stride) < stop
            start = (inputs.start - 1) * self.stride + self.kernel
            return Span(start, max(start, inputs.stop * self.stride))
        reach = (self.kernel - 1) * self.dilation
        start = -(-inputs.start // self.stride)
        return Span(start, max(start, (inputs.stop - 1 - reach) // self.stride + 1))

    def anchor(self, output: Fraction) -> Fraction:
        """Where an output step lies in its input: the left wing is (kernel - 1) // 2 taps."""
        wing = (self.kernel - 1) // 2
        if self.transposed:  # the taps of output n are n - kernel + 1 ... n, at 1/stride steps
            return (output - (self.kernel - 1) + wing) / self.stride
        return output * self.stride + wing * self.dilation


@dataclass(frozen=True)
class Chain:
    """Layers in the order in which the signal passes them."""

    layers: tuple[Layer, ...]

    def inputs(self, outputs: Span) -> Span:
        for layer in reversed(self.layers):
            outputs = layer.inputs(outputs)
        return outputs

    def outputs(self, inputs: Span) -> Span:
        for layer in self.layers:
            inputs = layer.outputs(inputs)
        return inputs

    def anchor(self, output: int) -> Fraction:
        """Position of an output step, in input steps of the whole chain."""
        position = Fraction(output)
        for layer in reversed(self.layers):
            position = layer.anchor(position)
        return position

    def __add__(self, other: Chain) -> Chain:
        return Chain(self.layers + other.layers)


FRAMING = Chain((Layer(FRAME_LENGTH, FRAME_HOP),))
_K3 = Layer(3)
# Chorowski et al. 2019, section III: two k3, one strided k4, two k3, four k1.
ENCODER = Chain((_K3, _K3, Layer(4, 2), _K3, _K3))
# Delta and delta-delta of width 5 each look two frames to both sides.
DELTAS = Chain((Layer(5), Layer(5)))
# The convolution that mixes neighbouring units after the bottleneck's jitter.
MIXING = Chain((_K3,))

FEATURES = {"logmel80": Chain(()), "mfcc39": DELTAS}
# Kernels and strides from units to samples (Chorowski et al. 2019: 5 * 4 * 4 * 4 = 320); from
# frames, for the inverter, the last stride is 2.
TRANSPOSED = {
    UNIT_FRAMES: ((25, 5), (16, 4), (16, 4), (16, 4)),
    1: ((25, 5), (16, 4), (16, 4), (16, 2)),
}


def upsampling_chain(kind: str, repeats: int) -> Chain:
    """From units, each of ``repeats`` frames, to conditioning steps.

    ``linear``: units repeated to frames and two k3 convolutions over these; ``transposed``: to
    samples.
    """
    if kind == "transposed":
        return Chain(tuple(Layer(k, s, transposed=True) for k, s in TRANSPOSED[repeats]))
    return Chain((Layer(repeats, repeats, transposed=True), _K3, _K3))


# Between frames the sampler interpolates linearly: a triangular kernel of two hops less one.
_INTERPOLATION = Chain((Layer(2 * FRAME_HOP - 1, FRAME_HOP, transposed=True),))


def receptive_field(kernel_size: int, blocks: int, layers: int) -> int:
    """Past samples (the output's own input among them) one WaveNet output depends on."""
    return blocks * (kernel_size - 1) * ((1 << layers) - 1) + 1


@dataclass(frozen=True)
class Geometry:
    """All lengths, trims and offsets of one model.

    wav samples -> [encoder] -> units -> [conditioner] -> conditioning steps -> output samples.
    A conditioning step is a frame (``conditioning_hop`` 160) with linear upsampling, where the
    sampler interpolates, and a sample (hop 1) with transposed upsampling.
    """

    encoder: Chain
    conditioner: Chain
    unit_hop: int
    conditioning_hop: int
    receptive_field: int

    @classmethod
    def of(
        cls,
        *,
        features: str,
        upsampling: str,
        kernel_size: int,
        blocks: int,
        layers: int,
        encoder: bool = True,
        instance_norm: int | None = None,
    ) -> Geometry:
        """The geometry of a model by its configuration's values (``ModelConfig.geometry``).

        Without an encoder (the inverter) the units are the features' frames.
        """
        chain = FRAMING + FEATURES[features]
        if instance_norm is not None:
            chain += Chain((Layer(instance_norm),))
        repeats = UNIT_FRAMES if encoder else 1
        return cls(
            encoder=chain + ENCODER if encoder else chain,
            conditioner=MIXING + upsampling_chain(upsampling, repeats),
            unit_hop=FRAME_HOP * repeats,
            conditioning_hop=FRAME_HOP if upsampling == "linear" else 1,
            receptive_field=receptive_field(kernel_size, blocks, layers),
        )

    @cached_property
    def sample_chain(self) -> Chain:
        """From wav samples to the conditioning of single output samples."""
        chain = self.encoder + self.conditioner
        return chain + _INTERPOLATION if self.conditioning_hop > 1 else chain

    @cached_property
    def offset(self) -> int:
        """Wav position of conditioning step 0 (step q lies at offset + q * conditioning_hop)."""
        position = (self.encoder + self.conditioner).anchor(0)
        assert position.denominator == 1
        return int(position)

    def unit_inputs(self, units: Span) -> Span:
        """The wav samples that the encoder needs for these units."""
        return self.encoder.inputs(units)

    def conditioning_inputs(self, steps: Span) -> Span:
        """The units that the conditioner needs for these conditioning steps."""
        return self.conditioner.inputs(steps)

    def conditioning_steps(self, samples: int) -> int:
        """How many conditioning steps a chunk of that many samples needs.

        Between steps the sampler interpolates, so it needs the step at the chunk's end too.
        """
        assert samples % self.conditioning_hop == 0
        return samples // self.conditioning_hop + (1 if self.conditioning_hop > 1 else 0)

    def plan(self, samples: int, *, lead: int = 0) -> Plan:
        """Lay out the prediction of ``samples`` samples after ``lead`` fed ones.

        Both are multiples of the unit hop. The plan's first unit and first conditioning step
        are on the unit grid, so every plan of these lengths is the same but for its shift.
        """
        assert samples % self.unit_hop == 0
        assert lead % self.unit_hop == 0
        first = self._aligned_step
        steps = Span(first, first + self.conditioning_steps(lead + samples))
        units = self.conditioning_inputs(steps)
        made = self.conditioner.outputs(units)
        wav = self.unit_inputs(units)
        return Plan(
            left=self.offset + first * self.conditioning_hop + lead - wav.start,
            wav_length=len(wav),
            units=len(units),
            steps=len(steps),
            skip=steps.start - made.start,
            made=len(made),
        )

    @cached_property
    def _aligned_step(self) -> int:
        """The first conditioning step whose units start on unit 0."""
        step = 0
        while self.conditioning_inputs(Span(step, step + 1)).start < 0:
            step += 1
        return step

    @cached_property
    def lookahead_samples(self) -> int:
        """Wav samples after an output sample that must be known to compute it: the maximum
        over the phases of the unit grid (the algorithmic latency)."""
        return max(self.lookahead(phase) for phase in range(self.unit_hop))

    def lookahead(self, phase: int) -> int:
        """Wav samples after the output sample at ``phase`` of the unit grid that it needs."""
        needed = self.sample_chain.inputs(Span(phase, phase + 1))
        position = self.sample_chain.anchor(phase)
        return needed.stop - 1 - int(position)

    @property
    def lead_samples(self) -> int:
        """Samples fed before the first wanted one: a receptive field, on the unit grid."""
        return -(-(self.receptive_field - 1) // self.unit_hop) * self.unit_hop


@dataclass(frozen=True)
class Plan:
    """What one excerpt needs (a training window or a streaming chunk), in lengths.

    left: wav samples from the excerpt's start to the first predicted sample;
    wav_length: wav samples in all; units: what the encoder makes of them;
    made: conditioning steps the conditioner makes of those units, of which ``skip`` are dropped
    and ``steps`` used.
    """

    left: int
    wav_length: int
    units: int
    steps: int
    skip: int
    made: int

    @property
    def right(self) -> int:
        """Wav samples at the excerpt's end beyond ``left``; the predicted ones among them."""
        return self.wav_length - self.left
