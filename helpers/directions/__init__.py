"""Directions: how to find them, and what they can do."""
