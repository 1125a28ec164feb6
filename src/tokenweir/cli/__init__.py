"""The command ``weir``: one file per command, each loaded when it is called."""
