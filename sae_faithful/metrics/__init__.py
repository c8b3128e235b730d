"""Measures: arrays in, numbers out; one a file."""
