"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A failure the user can mend: one sentence naming the file, key or value and what to do.

    Programs print the sentence without a traceback and exit with status 2.
    """
