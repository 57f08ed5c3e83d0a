"""One quote in the dialect of each market. So far there is one dialect: the quote's own canonical JSON, `harness quote --json`."""
