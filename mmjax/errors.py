"""Errors that a user can mend. Their message names the file, key or sample, and the remedy.

The command line prints such an error as its message alone. Anything else that is raised is a fault of mmjax, and
is shown with its traceback.
"""


class UserError(ValueError):
    """Something in a config, a file or an argument that the user can mend."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class MissingPackage(UserError, ModuleNotFoundError):
    """A package that an optional feature requires and that is not installed."""
