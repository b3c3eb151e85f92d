"""The error that a command tells its user in one line."""


class UserError(Exception):
    """A mistake that the user can mend: wrong input, a missing file, settings that do not fit.

    The command line prints its message as `llmjp: error: ...` without a traceback and exits with 1.
    """
