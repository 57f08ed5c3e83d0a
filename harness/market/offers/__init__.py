"""The offer: what is signed, how, and what it is bound to."""
