"""The command line. One file a command, imported when it is called; `main` turns errors into exit codes."""
