"""A quote made payable, in the dialect of each market; who may ask for one, and the life that it then has."""
