"""The one exception that a subcommand raises for a user's mistake."""


class UserError(Exception):
    """Input that cannot be used. The message is one sentence; the command ends with exit code 2."""
