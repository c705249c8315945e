"""The persistent kernel of the engine `triton`: a whole chunk of samples in one launch.

Legend: M lanes of one program, B lanes, T samples, F conditioning steps, L layers, k taps, R
residual, G gate, S skip and C conditioning channels, Q levels. Widths in the kernel are the padded
ones; padding is zero in every weight, so what it computes adds nothing.

A program owns M lanes for all T samples and never waits for another. What is ordered is therefore
ordered inside of one program, by its barriers:

* Ring buffers. The input of layer l at time t goes to row t modulo `FACTOR * dilation`, where
  FACTOR is the power of two that is not less than k. The rows read at that time lie 1 to k - 1
  dilations back, never in the row that is written, so inside of a sample reads and writes do not
  meet and the compiler may fetch a later layer's past before an earlier layer's present is
  written. What one sample writes the next may read, and what one sample reads the next may
  overwrite: between any two samples there is a barrier.
* Scratch memory, through which activations pass that one thread makes and others need. Between a
  store and the loads that depend on it there is a barrier, and between these loads and the next
  store to the place another.

A barrier orders memory among the threads of a program, caches included. Loads and stores of what
changes bypass the first cache (`.cg`) all the same: it would hold nothing of use, and the second
is where the stores go. Software pipelining moves loads of a loop ahead of its stores, and never
across a barrier: the loops below that are pipelined have none inside, and load nothing that they
store.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _gated(filters, gates):
    """tanh(filters) * sigmoid(gates); NaN where either is not finite, since their limits would
    hide it."""
    z = (2.0 * _sigmoid(2.0 * filters) - 1.0) * _sigmoid(gates)
    return z + (filters + gates) * 0.0


@triton.jit
def _rectified(x):
    return tl.where(x < 0.0, 0.0, x)  # a maximum would hide NaN


@triton.jit
def _product(
    sums,
    source,  # [M, 1] pointers to the rows
    weights,  # [K, N], the first of its columns
    depth,
    columns,  # [N]
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """sums [M, N] + source [M, depth] x weights [depth, N], both in tiles of TILE rows."""
    inner = tl.arange(0, TILE)
    for first in tl.range(0, depth, TILE, num_stages=STAGES):
        x = tl.load(source + (first + inner)[None, :], cache_modifier=".cg")
        w = tl.load(weights + (first + inner)[:, None] * ROW + columns[None, :])
        sums = tl.dot(x, w, sums, input_precision="ieee")
    return sums


@triton.jit
def _interpolated(
    conditioning,
    lane,
    frame,
    ratio,
    layer,
    column,  # [N] of the padded gate channels
    steps,
    GATE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A layer's projections between those of the frame's ends: of filters and gates, [M, N]."""
    inside = (column < GATE)[None, :]
    here = conditioning + (lane * steps + frame)[:, None] * WIDTH
    here += layer * 2 * GATE + column[None, :]
    f0 = tl.load(here, mask=inside, other=0.0)
    f1 = tl.load(here + WIDTH, mask=inside, other=0.0)
    g0 = tl.load(here + GATE, mask=inside, other=0.0)
    g1 = tl.load(here + GATE + WIDTH, mask=inside, other=0.0)
    return f0 + ratio * (f1 - f0), g0 + ratio * (g1 - g0)


@triton.jit
def _ring_rows(layer, PER_BLOCK: tl.constexpr, FACTOR: tl.constexpr):
    """A layer's first row in a lane's ring buffers, and its dilation."""
    in_block = layer % PER_BLOCK
    dilation = 1 << in_block
    # The layers of a block take FACTOR * (1 + 2 + 4 + ...) rows.
    first = (layer // PER_BLOCK) * (FACTOR * ((1 << PER_BLOCK) - 1)) + FACTOR * (dilation - 1)
    return first, dilation


@triton.jit(do_not_specialize=["lanes", "samples", "steps", "rows", "temperature"])
def generate(
    # Results: codes [B, T], logits [B, T, Q] of forced codes, broken [B] (not finite).
    codes,
    logits,
    broken,
    # State, changed in place: code [B], time [B], ring [B, rows, R].
    last_code,
    last_time,
    ring,
    # Work: conditioning [B, F, L * 2G] or [B, T, C], uniforms [B, T], forced codes [B, T].
    conditioning,
    uniforms,
    forced,
    # Weights.
    embedding,  # [Q, R] float32
    taps,  # [L, k * R + C, 2G]; C is 0 with HOP > 1
    bias,  # [L, 2G], with HOP 1
    residual,  # [L, G, R]
    residual_bias,  # [L, R]
    skip,  # [L, G, S]
    skip_bias,  # [S]
    hidden,  # [S, S]
    hidden_bias,  # [S]
    output,  # [S, Q]
    output_bias,  # [Q]
    # Scratch: [programs, M, 2S], if WIDE [programs, M, 2S + C + L * G]; [programs, M, R] float32.
    scratch,
    path,
    lanes,
    samples,
    steps,
    rows,
    temperature,
    LEVELS: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    GATE: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    LAYERS: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
    FACTOR: tl.constexpr,
    HOP: tl.constexpr,
    FORCED: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_G: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    HEAD_DEPTH: tl.constexpr,
    HEAD_STAGES: tl.constexpr,
):
    """Draws (or, if FORCED, follows) T samples of the M lanes of each program.

    WIDE: activations go through scratch memory in tiles of TILE_G and TILE_R outputs and DEPTH
    inputs; otherwise a layer's stay in registers, and it is one product of each kind.
    """
    OPERAND: tl.constexpr = taps.dtype.element_ty
    SCRATCH: tl.constexpr = 2 * S + C + LAYERS * G if WIDE else 2 * S
    PANEL: tl.constexpr = (TAPS * R + C) * 2 * G
    WIDTH: tl.constexpr = LAYERS * 2 * GATE
    program = tl.program_id(0)
    of_program = program * M + tl.arange(0, M)
    alive = of_program < lanes
    # Rows without a lane repeat the last one's reading, and write nothing.
    lane = tl.minimum(of_program, lanes - 1).to(tl.int64)
    lane_ring = ring + (lane * rows)[:, None] * R
    own = scratch + of_program.to(tl.int64)[:, None] * SCRATCH
    own_path = path + of_program.to(tl.int64)[:, None] * R
    column_r = tl.arange(0, R if not WIDE else TILE_R)
    column_g = tl.arange(0, G if not WIDE else TILE_G)
    column_s = tl.arange(0, S)
    column_q = tl.arange(0, Q)

    code = tl.load(last_code + lane)
    time = tl.load(last_time + lane)
    unfit = tl.zeros([M], tl.int32)
    for t in tl.range(0, samples, num_stages=1):
        uniform = tl.load(uniforms + lane * samples + t) if not FORCED else 0.0
        frame = t // HOP
        ratio = (t - frame * HOP).to(tl.float32) / HOP
        skipped = tl.zeros([M, S], tl.float32) + tl.load(skip_bias + column_s)[None, :]

        if not WIDE:
            if HOP == 1:
                column_c = tl.arange(0, C)
                source = conditioning + (lane * steps + t)[:, None] * CHANNELS + column_c[None, :]
                channels = tl.load(source, mask=(column_c < CHANNELS)[None, :], other=0.0)
                channels = channels.to(OPERAND)
            x = tl.load(embedding + code[:, None] * R + column_r[None, :])
            for layer in tl.range(0, LAYERS, num_stages=STAGES):
                first, dilation = _ring_rows(layer, PER_BLOCK, FACTOR)
                modulo = FACTOR * dilation - 1
                panel = taps + layer * PANEL + column_r[:, None] * (2 * G) + column_g[None, :]
                if HOP == 1:
                    at = bias + layer * (2 * G) + column_g
                    filters = tl.zeros([M, G], tl.float32) + tl.load(at)[None, :]
                    gates = tl.zeros([M, G], tl.float32) + tl.load(at + G)[None, :]
                    there = taps + layer * PANEL + TAPS * R * 2 * G
                    there += column_c[:, None] * (2 * G) + column_g[None, :]
                    filters = tl.dot(channels, tl.load(there), filters, input_precision="ieee")
                    gates = tl.dot(channels, tl.load(there + G), gates, input_precision="ieee")
                else:
                    filters, gates = _interpolated(
                        conditioning, lane, frame, ratio, layer, column_g, steps, GATE, WIDTH
                    )
                for tap in tl.static_range(0, TAPS - 1):
                    row = first + ((time - (TAPS - 1 - tap) * dilation) & modulo)
                    past = lane_ring + row[:, None] * R + column_r[None, :]
                    earlier = tl.load(past, cache_modifier=".cg")
                    w = tl.load(panel + tap * (R * 2 * G))
                    filters = tl.dot(earlier, w, filters, input_precision="ieee")
                    w = tl.load(panel + tap * (R * 2 * G) + G)
                    gates = tl.dot(earlier, w, gates, input_precision="ieee")
                present = x.to(OPERAND)
                w = tl.load(panel + (TAPS - 1) * (R * 2 * G))
                filters = tl.dot(present, w, filters, input_precision="ieee")
                w = tl.load(panel + (TAPS - 1) * (R * 2 * G) + G)
                gates = tl.dot(present, w, gates, input_precision="ieee")
                z = _gated(filters, gates).to(OPERAND)
                row = first + (time & modulo)
                place = lane_ring + row[:, None] * R + column_r[None, :]
                tl.store(place, present, mask=alive[:, None], cache_modifier=".cg")
                w = tl.load(residual + layer * (G * R) + column_g[:, None] * R + column_r[None, :])
                x += tl.load(residual_bias + layer * R + column_r)[None, :]
                x = tl.dot(z, w, x, input_precision="ieee")
                w = tl.load(skip + layer * (G * S) + column_g[:, None] * S + column_s[None, :])
                skipped = tl.dot(z, w, skipped, input_precision="ieee")
        else:
            for first_r in tl.range(0, R, TILE_R, num_stages=1):
                at = first_r + column_r[None, :]
                x = tl.load(embedding + code[:, None] * R + at)
                tl.store(own_path + at, x, cache_modifier=".cg")
                row = time & (FACTOR - 1)
                place = lane_ring + row[:, None] * R + at
                tl.store(place, x.to(OPERAND), mask=alive[:, None], cache_modifier=".cg")
            if HOP == 1:
                for first_c in tl.range(0, C, DEPTH, num_stages=1):
                    at = first_c + tl.arange(0, DEPTH)[None, :]
                    source = conditioning + (lane * steps + t)[:, None] * CHANNELS + at
                    channels = tl.load(source, mask=at < CHANNELS, other=0.0)
                    tl.store(own + 2 * S + at, channels.to(OPERAND), cache_modifier=".cg")
            tl.debug_barrier()
            for layer in tl.range(0, LAYERS, num_stages=1):
                first, dilation = _ring_rows(layer, PER_BLOCK, FACTOR)
                modulo = FACTOR * dilation - 1
                for first_g in tl.range(0, G, TILE_G, num_stages=1):
                    if HOP == 1:
                        at = bias + layer * (2 * G) + first_g + column_g
                        filters = tl.zeros([M, TILE_G], tl.float32) + tl.load(at)[None, :]
                        gates = tl.zeros([M, TILE_G], tl.float32) + tl.load(at + G)[None, :]
                    else:
                        filters, gates = _interpolated(
                            conditioning, lane, frame, ratio, layer, first_g + column_g, steps,
                            GATE, WIDTH,
                        )  # fmt: skip
                    panel = taps + layer * PANEL + first_g
                    inner = tl.arange(0, DEPTH)
                    # Past and present are in the ring, one tap after the other; then channels.
                    for at in tl.range(0, TAPS * R + C, DEPTH, num_stages=STAGES):
                        tap = at // R
                        row = first + ((time - (TAPS - 1 - tap) * dilation) & modulo)
                        inputs = lane_ring + row[:, None] * R + (at - tap * R)
                        if HOP == 1:
                            inputs = tl.where(at < TAPS * R, inputs, own + 2 * S + (at - TAPS * R))
                        operand = tl.load(inputs + inner[None, :], cache_modifier=".cg")
                        here = panel + (at + inner)[:, None] * (2 * G) + column_g[None, :]
                        filters = tl.dot(operand, tl.load(here), filters, input_precision="ieee")
                        gates = tl.dot(operand, tl.load(here + G), gates, input_precision="ieee")
                    place = own + 2 * S + C + layer * G + first_g + column_g[None, :]
                    tl.store(place, _gated(filters, gates).to(OPERAND), cache_modifier=".cg")
                tl.debug_barrier()
                if layer + 1 < LAYERS:
                    above, twice = _ring_rows(layer + 1, PER_BLOCK, FACTOR)
                    row = above + (time & (FACTOR * twice - 1))
                    for first_r in tl.range(0, R, TILE_R, num_stages=1):
                        at = first_r + column_r
                        x = tl.load(own_path + at[None, :], cache_modifier=".cg")
                        x += tl.load(residual_bias + layer * R + at)[None, :]
                        x = _product(
                            x, own + 2 * S + C + layer * G, residual + layer * (G * R), G, at,
                            R, DEPTH, STAGES,
                        )  # fmt: skip
                        # No barrier since the load: what is stored was made of what it gave.
                        tl.store(own_path + at[None, :], x, cache_modifier=".cg")
                        place = lane_ring + row[:, None] * R + at[None, :]
                        tl.store(place, x.to(OPERAND), mask=alive[:, None], cache_modifier=".cg")
                    tl.debug_barrier()
            skipped = _product(
                skipped, own + 2 * S + C, skip, LAYERS * G, column_s, S, HEAD_DEPTH, HEAD_STAGES
            )

        place = own + column_s[None, :]
        tl.store(place, _rectified(skipped).to(OPERAND), cache_modifier=".cg")
        tl.debug_barrier()
        y = tl.zeros([M, S], tl.float32) + tl.load(hidden_bias + column_s)[None, :]
        y = _product(y, own, hidden, S, column_s, S, HEAD_DEPTH, HEAD_STAGES)
        tl.store(place + S, _rectified(y).to(OPERAND), cache_modifier=".cg")
        tl.debug_barrier()
        y = tl.zeros([M, Q], tl.float32) + tl.load(output_bias + column_q)[None, :]
        y = _product(y, own + S, output, S, column_q, Q, HEAD_DEPTH, HEAD_STAGES)

        # 0 for a finite row, NaN for any other.
        nothing = tl.sum(y * 0.0, axis=1)
        unfit = tl.where(nothing == 0.0, unfit, 1)
        if FORCED:
            place = logits + (lane * samples + t)[:, None] * LEVELS + column_q[None, :]
            tl.store(place, y, mask=alive[:, None] & (column_q < LEVELS)[None, :])
            code = tl.load(forced + lane * samples + t)
        else:
            y = tl.where((column_q < LEVELS)[None, :], y, float("-inf"))
            if temperature > 0.0:
                odds = tl.exp((y - tl.max(y, axis=1)[:, None]) / temperature)
                steps_up = tl.cumsum(odds, axis=1)
                # The smallest whose cumulative probability exceeds the uniform: counting those
                # that do not would differ where rounding lets a sum fall back by its last bit.
                wanted = (uniform * tl.sum(odds, axis=1))[:, None]
                found = tl.where(steps_up > wanted, column_q[None, :], LEVELS - 1)
                code = tl.min(found, axis=1)
            else:
                code = tl.argmax(y, axis=1)
            place = codes + lane * samples + t
            tl.store(place, code.to(codes.dtype.element_ty), mask=alive)
        time += 1
        tl.debug_barrier()
    tl.store(last_code + lane, code, mask=alive)
    tl.store(last_time + lane, time, mask=alive)
    tl.store(broken + lane, unfit, mask=alive)
