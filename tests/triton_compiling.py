"""The kernel of the engine `triton` compiled for compute capability 9.0, without such a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vconv.config import load_config
from vconv.engines import triton_kernel
from vconv.engines.triton import Launch, _packed, _sizes
from vconv.nn.wavenet import WaveNet

CONFIGS = Path(__file__).parents[1] / "configs"
TYPES = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.uint8: "*u8"
}  # fmt: skip


def compiled(preset: str, precision: str, *, forced: bool = False) -> Any:
    """What Triton makes of a preset's decoder: `.metadata.shared` bytes, `.asm` by name."""
    decoder = load_config(CONFIGS / f"{preset}.yaml").model.decoder
    hop = 160 if decoder.upsampling == "linear" else 1
    wavenet = WaveNet(
        levels=256,
        residual_channels=decoder.residual_channels,
        gate_channels=decoder.gate_channels,
        skip_channels=decoder.skip_channels,
        conditioning_channels=decoder.conditioning_channels,
        blocks=decoder.blocks,
        layers=decoder.layers,
        kernel_size=decoder.kernel_size,
        hop=hop,
    )
    operand = torch.bfloat16 if precision == "bf16" else torch.float32
    launch = Launch.best(wavenet, operand.itemsize)
    sizes = _sizes(wavenet, decoder.layers, launch)
    types = {name: TYPES[t.dtype] for name, t in _packed(wavenet, sizes, operand).items()}
    types |= dict.fromkeys(("ring", "scratch"), TYPES[operand])
    types |= dict.fromkeys(("logits", "conditioning", "uniforms", "path"), "*fp32")
    types |= dict.fromkeys(("broken", "last_code", "last_time", "forced"), "*i32")
    types |= dict.fromkeys(("lanes", "samples", "steps", "rows"), "i32")
    types |= {"codes": "*u8", "temperature": "fp32"}
    constants = sizes | {
        "FORCED": forced, "STAGES": launch.stages, "HEAD_STAGES": launch.head_stages
    }  # fmt: skip
    names = triton_kernel.generate.arg_names
    pointers = [i for i, name in enumerate(names) if types.get(name, "").startswith("*")]
    source = ASTSource(
        fn=triton_kernel.generate,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": launch.warps})
