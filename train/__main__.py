"""``python -m vconv.train CONFIG``: ``vconv train`` as torchrun starts it."""

import sys

from vconv.cli import main

from .launch import die_with_launcher

if __name__ == "__main__":
    die_with_launcher()
    main(["train", *sys.argv[1:]])
