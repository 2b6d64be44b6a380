"""The cost of a shape: exact counts, estimated time and memory, measured throughput."""
