"""Evaluation: the returns of policies, and the agreement of students with their teacher."""
