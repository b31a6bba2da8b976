"""One replica among the others: its membership in the cache service, and the entries that it shares with them."""
