"""One file a dialect: pure functions from an offer to what a market reads, and back."""
