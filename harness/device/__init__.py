"""The devices: what they are, how code runs on them, and what their sensors say."""
