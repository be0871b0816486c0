"""The subcommands of ``attn``, one a module: ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> exit code``.

Importing them is light; each imports what it needs when it runs.
"""
