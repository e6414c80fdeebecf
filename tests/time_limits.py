"""Time limits of tests that wait for other processes."""

# Only a process that hangs may reach this limit: it is at least ten times as long as any wait on an idle machine,
# because the machine may be busy. Times that a program guarantees are asserted in the tests themselves.
HANG_SECONDS = 900
