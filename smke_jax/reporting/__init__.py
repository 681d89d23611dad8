"""Curves, picture grids and the one-file HTML report, from plain data."""
