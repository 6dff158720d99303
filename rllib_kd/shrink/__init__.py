"""The smallest student that keeps a teacher's return, with a certificate."""
