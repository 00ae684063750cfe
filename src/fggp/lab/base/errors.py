"""The one exception of the lab that is meant for the person at the keyboard."""


class UsageError(ValueError):
    """A mistake that the user can correct; the command line prints it as one line and exits with 2."""
