"""A conversion from its first block to its last: of a recording, or of blocks as they come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .inputs import Recording, as_samples
from .lanes import Lanes, LaneSession
from .loudness import Loudness
from .reading import Samples
from .results import Cancelled, Progress
from .stream import Chunk, Session, Voice

log = logging.getLogger("vconv")


def said(
    voice: Voice,
    recording: Recording,
    out_hz: int,
    lanes: Lanes,
    progress: Progress | None,
    heard: list[Chunk] | None = None,
    cores: Callable[[], int] | None = None,
) -> tuple[Session | LaneSession, Iterator[Samples]]:
    """A recording's session, and all that comes out of it; ``heard`` receives its chunks."""

    def tell() -> None:
        if progress is not None and progress(session.seconds, recording.seconds) is False:
            raise Cancelled(f"{recording.name}: the conversion was cancelled.")

    session: Session | LaneSession
    name, in_hz = recording.name, recording.rate
    if lanes == 1:
        session = Session(voice, name=name, in_hz=in_hz, out_hz=out_hz, heard=heard)
    else:
        session = LaneSession(
            voice,
            lanes=lanes,
            name=name,
            in_hz=in_hz,
            out_hz=out_hz,
            heard=heard,
            tell=tell,
            cores=cores,
        )

    def blocks() -> Iterator[Samples]:
        for block in recording.blocks:
            yield from session.push(block)
            tell()
        yield from session.flush()
        warn_of_silence(recording, session.encoder.loudness)

    return session, blocks()


def warn_of_silence(recording: Recording, loudness: Loudness) -> None:
    """Say if there was nothing to hear in a recording, which is read, or in its channels' mean."""
    if recording.mix_cancels:
        log.warning(
            "%s: the channels cancel each other in their mean; choose one with channel=N "
            "(--channel N).",
            recording.name,
        )
    elif loudness.silent:
        log.warning("%s: the recording is silent.", recording.name)


def streamed(voice: Voice, blocks: Iterable[Any], *, in_hz: int, out_hz: int) -> Iterator[Samples]:
    """Blocks of samples [T] as they come -> blocks of what is said."""
    session = Session(voice, name="<stream>", in_hz=in_hz, out_hz=out_hz)
    for block in blocks:
        for made in session.push(as_samples(block, session.encoder.pushed)):
            if len(made):
                yield made
    yield from session.flush()
