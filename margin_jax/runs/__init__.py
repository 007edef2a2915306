"""Whole runs: configuration in, folder out. This room knows all others."""
