"""Console output of the programs: log lines, progress and plain text tables."""
