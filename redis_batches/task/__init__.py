"""Declaring a batch task."""
