"""Facts, budgets, links and speeds of every host, gathered into one frozen `Survey`."""
