"""The one exception of the lab that is meant for the person at the keyboard."""


class UsageError(ValueError):
    """Something the user can put right; the command line prints it as one line and exits with 2."""
