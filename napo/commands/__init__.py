"""The command line: one file per command. `command.py` holds what they share; `napo/__main__.py` calls them."""
