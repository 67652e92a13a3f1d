"""Painters and their reader: how they were trained."""
