"""The command line: `main` continues one prompt; every sub-command is a file of its own."""
