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
    Voice("es-carib-diogo", "espeak-ng", "en-029+Diogo", pitch=80, speed=155),
    Voice("slt-high", "flite", "slt", shift=0.85, pitch=376),
    Voice("es-nyc-f5", "espeak-ng", "en-us-nyc+f5", shift=1.2, pitch=50, speed=142),
    Voice("es-pablo", "espeak-ng", "en-us+pablo"),
    Voice("es-lanc-edward", "espeak-ng", "en-gb-x-gbclan+edward", shift=0.82, pitch=10, speed=201),
    Voice("es-scot-jacky", "espeak-ng", "en-gb-scotland+Jacky", shift=1.1, pitch=95, speed=141),
    Voice("es-carib-hugo", "espeak-ng", "en-029+Hugo", shift=0.82, pitch=80, speed=189),
    Voice("slt", "flite", "slt"),  # index 12: the target of the README's examples
    Voice("es-rp-caleb", "espeak-ng", "en-gb-x-rp+caleb", shift=1.2, pitch=50, speed=129),
    Voice("es-sandro", "espeak-ng", "en-us+sandro"),
    Voice("es-mid-anika", "espeak-ng", "en-gb-x-gbcwmd+anika", pitch=35, speed=170),
    Voice("es-david", "espeak-ng", "en-us+david"),
    Voice("slt-low", "flite", "slt", shift=0.85, pitch=82),
    Voice("kal-high", "flite", "kal16", shift=1.15, pitch=191),
    Voice("es-steph2", "espeak-ng", "en-us+steph2"),
    Voice("slt-small", "flite", "slt", shift=1.15, pitch=278),
    Voice("es-rp-edward", "espeak-ng", "en-gb-x-rp+edward", shift=0.86, pitch=95, speed=180),
    Voice("es-scot-edward", "espeak-ng", "en-gb-scotland+edward", pitch=20, speed=170),
    Voice("kal-large", "flite", "kal16", shift=0.85, pitch=259),
    Voice("es-nyc-iven4", "espeak-ng", "en-us-nyc+iven4", shift=1.15, pitch=35, speed=135),
)

LICENCE = (
    "The sentences are vconv's own, under its licence. The recordings were made by flite (Carnegie"
    " Mellon University's licence: free to use, copy and distribute), festival's ked voice"
    " (University of Edinburgh, the same terms) and espeak-ng (a GPL-3.0-or-later program; its"
    " spoken output is not a work based on it); no recording is restricted."
)
