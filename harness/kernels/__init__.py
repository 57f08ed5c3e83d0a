"""The benchmarks, one file each. A file put here is a benchmark that exists; nothing else needs to know of it."""
