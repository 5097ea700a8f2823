"""Ray clusters: connecting to one, checking that it requires a token, and sending commands to it as jobs."""
