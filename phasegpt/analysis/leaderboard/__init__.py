"""The leaderboard from its records: runs -> cells -> board -> pages, pictures and report (view)."""
