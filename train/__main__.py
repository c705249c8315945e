"""``python -m vconv.train CONFIG``: ``vconv train`` as torchrun starts it."""

import os
import sys

from vconv.cli import main

from .launch import die_with_launcher

if __name__ == "__main__":
    die_with_launcher()
    try:
        main(["train", *sys.argv[1:]])
    except SystemExit as leaving:
        if "RANK" not in os.environ:
            raise
        # Everything is written and closed. Going on into the interpreter's end, a thread of gloo's
        # now and then meets it half taken down and aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else 1)
