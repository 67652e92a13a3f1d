"""What only lessons need: `install` (missing packages), `notebook` (start, stop, expect), `checks`.

The modules are imported one by one: `install` runs before the packages that the others need.
"""
