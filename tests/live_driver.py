"""`vconv convert - -o -`, live, as a program of its own: what tests of pipes run."""

from __future__ import annotations

import argparse
import sys

import vconv
from vconv.cli_shared import interruption, report_error
from vconv.messages import log_on_stderr
from vconv.pipe import convert_live, headerless, needs_the_whole, peeked


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", "--speaker", required=True)
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--sample-rate", type=int)
    parser.add_argument("--channel", type=int)
    parser.add_argument("--allow-truncated", action="store_true")
    parser.add_argument("--max-duration", type=float)
    options = parser.parse_args()
    interruption.install()
    assert not needs_the_whole(lanes="auto", level="keep", format_name="wav")
    stdin = sys.stdin.buffer
    with log_on_stderr(), vconv.load(options.model) as converter:
        source = headerless(stdin, options.sample_rate) if options.raw else peeked(stdin)
        try:
            convert_live(
                converter,
                source,
                sys.stdout.buffer,
                speaker=options.speaker,
                seed=options.seed,
                raw=options.raw,
                output_rate=options.sample_rate,
                channel=options.channel,
                allow_truncated=options.allow_truncated,
                max_seconds=options.max_duration,
            )
        except vconv.VconvError as error:
            return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
