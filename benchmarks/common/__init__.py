"""What all benchmarks share: the record, the clock and the pen."""
