"""What all benchmarks share: result files, timing and plots."""
