"""Other programs: what they are given, and what they predict."""
