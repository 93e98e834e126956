"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A failure the user can mend: one sentence naming the file, key or value and what to do.

    Programs print the sentence without a traceback and exit with status 2.
    """


class Unavailable(UserError):
    """A place or process that does not answer now; the same command may find it there later.

    Programs exit with status 1 after it, so that what watches a run starts it again.
    """
