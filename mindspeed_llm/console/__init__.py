"""What a program prints: lines, progress and tables of plain text."""
