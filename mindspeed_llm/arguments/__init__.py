"""Command lines as typed dataclasses: their flags, their help and the rules between them."""
