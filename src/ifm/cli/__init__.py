"""The command `ifm`: one module a subcommand."""
