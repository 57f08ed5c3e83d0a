"""What an agent is given of a market."""
