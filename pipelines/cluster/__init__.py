"""Ray clusters: connecting, checking that they ask for a token, and sending commands to them."""
