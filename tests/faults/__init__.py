"""The store before a provider that fails: a misbehaving proxy, counted requests, outages, kills."""
