"""Records to what a person reads. Draws; computes nothing and prints nothing."""
