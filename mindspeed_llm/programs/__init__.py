"""The programs of this project, as functions of their command lines, and the command that starts each of them."""
