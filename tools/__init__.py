"""What only commands run: the lessons, assignments and grading, publishing, reference values."""
