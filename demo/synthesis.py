"""Text to a levelled 16 kHz recording, by the three free engines.

Every step is a function of its input alone, so that one sentence in one voice is the same file on
every run: the engines are started afresh (espeak-ng's breath noise begins at the same seed then),
without the user's own settings, and levels are those of the sentence, not of a corpus.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from vconv.errors import SetupError

from .voices import Voice

SAMPLE_RATE = 16_000
FRAME = 160  # 10 ms, for finding silence
MARGIN_MS = 40  # kept before and after the speech, where the engine made as much
SILENCE_DB = -50.0  # against the loudest frame: below is silence
ACTIVE_DB = -30.0  # against the loudest frame: above counts for the level
LEVEL_DBFS = -26.0  # RMS over the active frames
PEAK_DBFS = -1.5

Signal = npt.NDArray[np.float64]

PACKAGES = {
    "flite": "flite",
    "espeak-ng": "espeak-ng",
    "festival": "festival",
    "ked_diphone": "festvox-kdlpc16k",
}


def synthesise(voice: Voice, texts: list[str], work: Path) -> Iterator[Signal]:
    """The sentences in that voice, 16 kHz, trimmed and levelled; `work` is an empty folder.

    Raises SetupError where the engine fails.
    """
    if voice.engine == "festival":
        # It takes longer to start than to speak: one process for all.
        script = work / "say.scm"
        script.write_text(_festival_script(voice, texts), encoding="ascii")
        _run(voice, ["festival", "-b", script.name], work)
        for number in range(len(texts)):
            yield _finish(voice, work / f"{number}.wav")
    else:
        for text in texts:
            _run(voice, _command(voice, text), work)
            yield _finish(voice, work / "raw.wav")


def versions(engines: set[str]) -> dict[str, str]:
    """What each engine says of its version; raises SetupError naming what is missing."""
    asked = {"flite": "version:", "espeak-ng": "eSpeak NG", "festival": "Festival Speech"}
    found = {}
    for engine in sorted(engines):
        lines = _output([engine, "--version"]).splitlines()
        line = next((line for line in lines if asked[engine] in line), lines[0] if lines else "")
        found[engine] = line.replace("version:", "").split("Data at")[0].strip()
    return found


def check_voices(voices: list[Voice]) -> None:
    """Raise SetupError if an engine or a voice is missing.

    Asked beforehand because flite and espeak-ng speak in their default voice where they lack the
    one named, without a word or an exit status.
    """
    listing = {
        "flite": ["flite", "-lv"],
        "espeak-ng": ["espeak-ng", "--voices=variant"],
        "festival": ["festival", "-b", "(print (voice.list))"],
    }
    for engine in sorted({voice.engine for voice in voices}):
        known = _output(listing[engine])
        for voice in voices:
            name = voice.engine_voice.rpartition("+")[2]
            if voice.engine == engine and name not in known:
                package = PACKAGES.get(name, PACKAGES[engine])
                raise SetupError(
                    f"{engine} has no voice {name!r}: install the Debian package {package}."
                )


def _command(voice: Voice, text: str) -> list[str]:
    if voice.engine == "flite":
        command = ["flite", "-voice", voice.engine_voice]
        if voice.pitch is not None:
            command += ["--setf", f"int_f0_target_mean={voice.pitch}"]
        # Spoken slower by as much as the shift will make it faster.
        if voice.shift != 1:
            command += ["--setf", f"duration_stretch={voice.shift}"]
        return [*command, "-t", text, "-o", "raw.wav"]
    command = ["espeak-ng", "-v", voice.engine_voice]
    if voice.pitch is not None:
        command += ["-p", str(voice.pitch)]
    if voice.speed is not None:
        command += ["-s", str(voice.speed)]
    return [*command, "-w", "raw.wav", text]


def _festival_script(voice: Voice, texts: list[str]) -> str:
    lines = [f"(voice_{voice.engine_voice})", f"(Parameter.set 'Duration_Stretch {voice.shift})"]
    for number, text in enumerate(texts):
        spoken = text.replace("\\", "").replace('"', "")
        lines.append(
            f'(utt.save.wave (utt.synth (Utterance Text "{spoken}")) "{number}.wav" \'riff)'
        )
    return "\n".join(lines) + "\n"


def _finish(voice: Voice, path: Path) -> Signal:
    """Read the engine's file, shift and resample it, trim it, set its level."""
    signal, rate = soundfile.read(path, dtype="float64")
    path.unlink()
    # Declaring the rate higher than it is raises every frequency, formants and pitch alike, as a
    # shorter vocal tract would.
    signal = soxr.resample(signal, rate * voice.shift, SAMPLE_RATE, quality="VHQ")
    return set_level(trim(signal))


def trim(signal: Signal) -> Signal:
    """`signal` [T] without its leading and trailing silence, but for MARGIN_MS."""
    loud = np.flatnonzero(_frame_db(signal) > SILENCE_DB)
    margin = MARGIN_MS * SAMPLE_RATE // 1000
    start = max(int(loud[0]) * FRAME - margin, 0)
    return signal[start : (int(loud[-1]) + 1) * FRAME + margin]


def set_level(signal: Signal) -> Signal:
    """`signal` [T] with its speech at LEVEL_DBFS, or lower where its peaks would clip."""
    power = np.square(signal[: len(signal) // FRAME * FRAME]).reshape(-1, FRAME).mean(axis=1)
    active = np.sqrt(power[_frame_db(signal) > ACTIVE_DB].mean())
    gain = min(10 ** (LEVEL_DBFS / 20) / active, 10 ** (PEAK_DBFS / 20) / np.abs(signal).max())
    return np.asarray(signal * gain)


def _frame_db(signal: Signal) -> Signal:
    """Level of each whole frame against the loudest [T // FRAME]."""
    frames = signal[: len(signal) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.square(frames).mean(axis=1)
    return np.asarray(10 * np.log10(power / power.max() + 1e-12))


def _output(command: list[str]) -> str:
    """What a command says, on either stream."""
    return _call(command, None).stdout.decode("utf-8", "replace")


def _run(voice: Voice, command: list[str], work: Path) -> None:
    result = _call(command, work)
    if result.returncode:
        said = result.stdout.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1] if said else f"exit status {result.returncode}"
        raise SetupError(f"{command[0]} failed with voice {voice.engine_voice}: {reason}")


def _call(command: list[str], work: Path | None) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which(command[0])
    if program is None:
        package = PACKAGES[command[0]]
        raise SetupError(f"{command[0]} is not installed: install the Debian package {package}.")
    return subprocess.run(
        command,
        executable=program,
        cwd=work,
        # The same arguments and environment each time, and no personal settings (~/.festivalrc,
        # ~/espeak-ng-data): espeak-ng 1.51 reads memory that it has not set, and the noise of some
        # voices changes with the length of a path or a variable.
        env={"HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
