"""Commands that measure a table once and write it to `data/evidence/`."""
