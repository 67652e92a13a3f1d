"""Commands that make what the lessons and the book show."""
