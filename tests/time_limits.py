"""How long a test waits for something that is sure to come."""

# Only something that hangs may reach a limit: at least ten times what any single wait takes on an idle machine, for the
# machine may be busy with other work. Times that a test asserts, because the program promises them, are its own.
HANG_SECONDS = 900
