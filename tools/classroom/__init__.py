"""Lessons as assignments: student and teacher versions, and grading without trust."""
