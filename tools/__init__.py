"""Programs around the lessons: run them, test them, publish them. They use the helpers."""
