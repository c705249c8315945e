"""The exceptions vconv raises for a user's mistake or a broken input.

Each carries one complete sentence (which file or key, what was found, what is allowed, what to do)
and the exit code the command line leaves with. Anything else that escapes is a bug of ours.
"""


class VconvError(Exception):
    """Base of all vconv errors; its text is one sentence for the user."""

    exit_code = 1


class UsageError(VconvError):
    """A wrong option, configuration key or combination (exit code 2)."""

    exit_code = 2


class InputError(VconvError):
    """A recording or corpus that cannot be used (exit code 3)."""

    exit_code = 3


class ModelError(VconvError):
    """A bundle or checkpoint that is damaged, foreign or incompatible (exit code 4)."""

    exit_code = 4


class SetupError(VconvError):
    """The machine lacks a device, a package or a program (exit code 5)."""

    exit_code = 5
