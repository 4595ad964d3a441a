"""What a user can put right: one sentence with the value, the reason and the remedy."""


class UserError(ValueError):
    """Wrong input, setting or environment; the command line prints it and exits with 2."""
