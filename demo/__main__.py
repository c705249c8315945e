"""``python -m vconv.demo``: the web page, as ``vconv demo``."""

import sys

from vconv.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
