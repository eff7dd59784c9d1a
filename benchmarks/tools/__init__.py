"""What benchmarks share: rows, options, processes and images."""
