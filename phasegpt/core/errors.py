"""Errors that a user can act on: the shell prints their message alone, without a traceback."""


class UserError(Exception):
    """Something the user can mend; the message says what, the value, what is allowed, how to fix.

    `exit_code` is what the command line returns.
    """

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration value is unknown, of the wrong type or out of range."""


class DataError(UserError):
    """A corpus, tokenizer file or token cache is missing or not what it should be."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or would run code when loaded."""


class NotImported(CheckpointError):
    """A file names a module of another package, which is code, and this process has not got it."""


class OutputError(UserError, OSError):
    """A file cannot be written: no room, no right, no such place. What stood there stands."""


class RegistrationError(UserError, ValueError):
    """PREREGISTRATION.md is missing, or says what it may not."""


class Collapsed(UserError):
    """Training met a non-finite loss or gradient and stopped; the last good checkpoint stands."""

    exit_code = 3


class ProcessFailed(UserError):
    """A process of a run that has several was ended, or does not answer; it can be resumed."""

    exit_code = 4


class Interrupted(UserError):
    """Training was asked to stop by a signal; it has saved a checkpoint and can be resumed."""

    def __init__(self, message: str, signum: int) -> None:
        """Remember `signum`; the exit code is the shell's 128 + signum."""
        super().__init__(message)
        self.exit_code = 128 + signum
