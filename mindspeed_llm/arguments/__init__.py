"""Command-line arguments as typed dataclasses, with their help texts, bounds and rules between flags."""
