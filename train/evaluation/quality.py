"""How good it sounds by models of listeners: DNSMOS, PESQ, STOI. [T] at 16 kHz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


class Mos:
    """DNSMOS P.835 and P.808 (Reddy et al. 2021, 2022), from the models in the wheel of speechmos,
    each on one thread."""

    def __init__(self) -> None:
        import onnxruntime
        from speechmos import dnsmos

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        folder = Path(dnsmos.__file__).parent / "dnsmos_models"

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(
                str(folder / name), options, providers=["CPUExecutionProvider"]
            )

        # Its constructor offers no options, and would take all processors.
        self._model: Any = dnsmos.DNSMOS.__new__(dnsmos.DNSMOS)
        self._model.onnx_sess = session("sig_bak_ovr.onnx")
        self._model.p808_onnx_sess = session("model_v8.onnx")

    def __call__(self, wav: Floats) -> dict[str, float]:
        """Overall, speech, background (P.835), and P.808."""
        made = self._model(np.clip(wav, -1, 1), 16000, False)
        return {
            "mos": float(made["ovrl_mos"]),
            "mos_speech": float(made["sig_mos"]),
            "mos_background": float(made["bak_mos"]),
            "mos_p808": float(made["p808_mos"]),
        }


def pesq_wb(reference: Floats, made: Floats) -> float | None:
    """ITU-T P.862.2; None where it finds no speech."""
    from pesq import PesqError, pesq

    if not np.any(made):
        return None
    found = pesq(16000, reference, made, "wb", on_error=PesqError.RETURN_VALUES)
    return float(found) if found > 0 else None


def stoi(reference: Floats, made: Floats) -> float:
    """Taal et al. 2011."""
    from pystoi import stoi as score

    frames = min(len(reference), len(made))
    return float(score(reference[:frames], made[:frames], 16000))
