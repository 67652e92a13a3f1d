"""Programs around the lessons; they use `helpers`, which knows nothing of them."""
