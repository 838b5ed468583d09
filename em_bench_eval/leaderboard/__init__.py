"""The leaderboard: what a submission is, whether it is sound, and what it scores. A submission is never trusted."""
