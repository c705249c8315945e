"""The WaveNet's loop in Python, compiled by numba, as one would write it: for comparison only.

Everything is allocated beforehand, weights lie input by input so that the products run over
contiguous outputs (LLVM makes vectors of them), the dilations' powers of two are masks, and sums
may be reordered (fastmath). One lane, fp32.

T samples, F conditioning steps, Q levels, R residual, G gate, S skip and C conditioning channels, L
layers, k taps.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from vconv.bench import Decoder
from vconv.engines.base import Codes, State

Floats = npt.NDArray[np.float32]


@numba.njit(fastmath=True, inline="always")
def add_product(matrix, vector, out):  # type: ignore[no-untyped-def]
    """matrix [inputs, outputs], vector [inputs]; out [outputs] += their product."""
    inputs, outputs = matrix.shape
    whole = inputs - inputs % 8
    # Eight at a time, so that out is read and written less often; 2, 4 and 16 are slower.
    for i in range(0, whole, 8):
        a, b, c, d = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        e, f, g, h = vector[i + 4], vector[i + 5], vector[i + 6], vector[i + 7]
        for o in range(outputs):
            out[o] += (
                a * matrix[i, o]
                + b * matrix[i + 1, o]
                + c * matrix[i + 2, o]
                + d * matrix[i + 3, o]
                + e * matrix[i + 4, o]
                + f * matrix[i + 5, o]
                + g * matrix[i + 6, o]
                + h * matrix[i + 7, o]
            )
    for i in range(whole, inputs):
        a = vector[i]
        for o in range(outputs):
            out[o] += a * matrix[i, o]


@numba.njit(fastmath=True)
def generate(  # type: ignore[no-untyped-def]
    conditioning,  # [F, L * 2G], or [T, C] with hop 1
    uniforms,  # [T]
    temperature,
    hop,
    embedding,  # [Q, R]
    taps,  # [L, k, R, 2G], oldest first
    condition,  # [L, C, 2G], with hop 1
    condition_bias,  # [L, 2G]
    residual,  # [L, G, R], zeros in the last
    residual_bias,  # [L, R]
    skip,  # [L * G, S]
    skip_bias,
    hidden,
    hidden_bias,
    logits,
    logits_bias,
    dilations,  # [L]
    contexts,  # [L, longest reach, R]
    previous,
    time,
    codes,  # [T]
):
    count, kernel, width, gates = taps.shape
    gate = gates // 2
    h, x = np.empty(gates, np.float32), np.empty(width, np.float32)
    z = np.empty(count * gate, np.float32)
    y, after = np.empty(skip.shape[1], np.float32), np.empty(skip.shape[1], np.float32)
    scores = np.empty(logits.shape[1], np.float32)
    mask = contexts.shape[1] - 1
    code = previous
    for t in range(len(codes)):
        x[:] = embedding[code]
        frame, share = t // hop, np.float32(t % hop) / np.float32(hop)
        for layer in range(count):
            if hop == 1:
                h[:] = condition_bias[layer]
                add_product(condition[layer], conditioning[t], h)
            else:
                first = layer * gates
                for o in range(gates):
                    here = conditioning[frame, first + o]
                    h[o] = here + share * (conditioning[frame + 1, first + o] - here)
            now = time + t
            for j in range(kernel - 1):
                row = (now - (kernel - 1 - j) * dilations[layer]) & mask
                add_product(taps[layer, j], contexts[layer, row], h)
            add_product(taps[layer, kernel - 1], x, h)
            contexts[layer, now & mask] = x
            out = z[layer * gate : (layer + 1) * gate]
            for o in range(gate):
                # tanh(a) = 2 sigmoid(2a) - 1, clamped where both are 1 in binary32
                a = min(max(h[o], np.float32(-15)), np.float32(15))
                b = min(max(h[gate + o], np.float32(-30)), np.float32(30))
                one = np.float32(1)
                filtered = np.float32(2) / (one + np.exp(np.float32(-2) * a)) - one
                out[o] = filtered / (one + np.exp(-b))
            if layer + 1 < count:
                x += residual_bias[layer]
                add_product(residual[layer], out, x)
        y[:] = skip_bias
        add_product(skip, z, y)
        for o in range(len(y)):
            y[o] = max(y[o], np.float32(0))
        after[:] = hidden_bias
        add_product(hidden, y, after)
        for o in range(len(after)):
            after[o] = max(after[o], np.float32(0))
        scores[:] = logits_bias
        add_product(logits, after, scores)
        most = scores.max()
        total = np.float32(0)
        for o in range(len(scores)):
            scores[o] = np.exp((scores[o] - most) / temperature)
            total += scores[o]
        wanted, reached, code = uniforms[t] * total, np.float32(0), len(scores) - 1
        for o in range(len(scores)):
            reached += scores[o]
            if reached > wanted:
                code = o
                break
        codes[t] = code
    return code


class NumbaEngine:
    """The compiled loop behind the signature of an engine; one lane, and only drawing."""

    name = "numba"

    def __init__(self, decoder: Decoder) -> None:
        weights = decoder.weights
        count = decoder.blocks * decoder.layers

        def stacked(name: str, layers: int) -> Floats:
            return np.stack([weights[f"layers.{layer}.{name}"] for layer in range(layers)])

        def inputs_first(matrices: Floats) -> Floats:
            return np.ascontiguousarray(np.swapaxes(matrices, -1, -2), np.float32)

        self.hop = decoder.hop
        self.levels, width = weights["embedding.weight"].shape
        dilated = inputs_first(stacked("dilated.weight", count))  # [L, k * R, 2G]
        gates = dilated.shape[2]
        residual = np.zeros((count, gates // 2, width), np.float32)
        residual_bias = np.zeros((count, width), np.float32)
        residual[:-1] = inputs_first(stacked("residual.weight", count - 1))
        residual_bias[:-1] = stacked("residual.bias", count - 1)
        projects = decoder.hop == 1
        self._tensors: tuple[Any, ...] = (
            np.asarray(weights["embedding.weight"], np.float32),
            dilated.reshape(count, decoder.kernel_size, width, gates),
            inputs_first(stacked("condition.weight", count)) if projects else dilated[:, :0],
            stacked("condition.bias", count) if projects else dilated[:, 0],
            residual,
            residual_bias,
            *(
                inputs_first(weights[f"{name}.weight"])
                if kind == "weight"
                else np.asarray(weights[f"{name}.bias"], np.float32)
                for name in ("skip", "hidden", "logits")
                for kind in ("weight", "bias")
            ),
            2 ** (np.arange(count) % decoder.layers),
        )
        reach = (decoder.kernel_size - 1) * 2 ** (decoder.layers - 1)
        rows = 1 << int(reach).bit_length()  # a power of two that is greater
        self._contexts = (count, rows, width)

    def initial_state(self, lanes: int) -> State:
        assert lanes == 1, lanes
        return np.zeros(self._contexts, np.float32), self.levels // 2, 0

    def generate(
        self, conditioning: Floats, uniforms: Floats, temperature: float, state: Any
    ) -> tuple[Codes, State]:
        """Draws, and changes the state in place."""
        contexts, previous, time = state
        codes = np.empty(uniforms.shape, np.int16)
        code = generate(
            conditioning[0],
            uniforms[0],
            np.float32(temperature),
            self.hop,
            *self._tensors,
            contexts,
            previous,
            time,
            codes[0],
        )
        return codes, (contexts, int(code), time + uniforms.shape[1])

    def score(self, conditioning: Floats, codes: Codes, state: State) -> tuple[Floats, State]:
        raise NotImplementedError
