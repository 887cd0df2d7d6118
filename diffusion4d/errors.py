"""The one error class whose message is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input: the message says what was required and what arrived. The command line exits with 2."""
