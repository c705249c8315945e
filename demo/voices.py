"""The voices of the demo corpus, chosen to be unlike each other; docs/corpus.md says how.

The order is the speaker index of models trained on the corpus: append, never reorder.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Voice:
    """One voice: an engine's voice and how it is asked to speak.

    shift -- factor on all frequencies after synthesis, formants and pitch alike, as by a vocal
             tract shorter by that factor (1 leaves the engine's output as it is); flite and
             festival are told to speak slower by the same factor, espeak-ng's `speed` allows for it
    pitch -- before the shift: mean F0 in Hz for flite, 0 to 99 for espeak-ng; None: the voice's own
    speed -- before the shift: words a minute, espeak-ng only; None: its default, 175
    """

    name: str
    engine: str
    engine_voice: str
    shift: float = 1.0
    pitch: int | None = None
    speed: int | None = None


VOICES = (
    Voice("awb", "flite", "awb"),
    Voice("rms", "flite", "rms", shift=0.92),  # unshifted it is too close to awb
    Voice("kal", "flite", "kal16"),
    Voice("ked", "festival", "ked_diphone"),
    Voice("es-scot-f5", "espeak-ng", "en-gb-scotland+f5", shift=0.82, pitch=80, speed=207),
    Voice("es-rp-hugo", "espeak-ng", "en-gb-x-rp+Hugo", shift=1.12, pitch=20, speed=152),
    Voice("slt-high", "flite", "slt", shift=0.85, pitch=376),
    Voice("es-nyc-f5", "espeak-ng", "en-us-nyc+f5", shift=1.2, pitch=50, speed=142),
    Voice("es-pablo", "espeak-ng", "en-us+pablo"),
    Voice("es-lanc-edward", "espeak-ng", "en-gb-x-gbclan+edward", shift=0.82, pitch=10, speed=201),
    Voice("es-scot-jacky", "espeak-ng", "en-gb-scotland+Jacky", shift=1.1, pitch=95, speed=141),
    Voice("es-carib-hugo", "espeak-ng", "en-029+Hugo", shift=0.82, pitch=80, speed=189),
    Voice("slt", "flite", "slt"),  # index 12: the target of the README's examples
    Voice("es-rp-caleb", "espeak-ng", "en-gb-x-rp+caleb", shift=1.2, pitch=50, speed=129),
    Voice("es-sandro", "espeak-ng", "en-us+sandro"),
    Voice("es-carib-anika", "espeak-ng", "en-029+anika", pitch=50, speed=170),
    Voice("es-david", "espeak-ng", "en-us+david"),
    Voice("slt-low", "flite", "slt", shift=0.85, pitch=82),
    Voice("kal-high", "flite", "kal16", shift=1.15, pitch=191),
    Voice("es-lanc-f4", "espeak-ng", "en-gb-x-gbclan+f4", shift=0.94, pitch=50, speed=181),
    Voice("awb-low", "flite", "awb", shift=1.15, pitch=78),
    Voice("es-rp-edward", "espeak-ng", "en-gb-x-rp+edward", shift=0.86, pitch=95, speed=180),
    Voice("es-scot-edward", "espeak-ng", "en-gb-scotland+edward", pitch=20, speed=170),
    Voice("es-nguyen", "espeak-ng", "en-us+Nguyen"),
)

LICENCE = (
    "The sentences are vconv's own, under its licence. The recordings were made by flite (Carnegie"
    " Mellon University's licence, which permits use, copying and distribution free of charge),"
    " festival's ked voice (University of Edinburgh, the same terms) and espeak-ng (GPL-3.0-or-later"
    " programs whose spoken output is not a work based on them); no recording is restricted."
)
