"""What `examples/benchmark.py` measures: latency, batches, training, and the targets that they are held against."""
