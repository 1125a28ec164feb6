"""How much a request will use, how much it used, and what that costs."""
