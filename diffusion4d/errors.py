"""The one error class whose message is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input: the message says what was required and what arrived. The command line exits with 2."""


def reason(error: Exception) -> str:
    """What an error says; of numpy's about pickles, without its advice to load the file unsafely."""
    said = str(error)
    return "it is no npz file of plain arrays" if "pickle" in said else said
