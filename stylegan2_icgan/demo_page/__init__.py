"""The page of demo.py: what it answers, and how it looks."""
