"""What a shape costs: exact counts, measured throughput."""
