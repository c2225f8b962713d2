"""One Redis server: connecting, scripts, keys, and what it refuses."""
