"""Who may do what: users, teams, API keys, tiers and their limits."""
