"""The one exception that means: the user gave something wrong."""


class UserError(Exception):
    """One sentence that names the file, row, column or option and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """
