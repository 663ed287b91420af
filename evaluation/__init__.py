"""Is it any good? Frozen features, probes and few-label fine-tuning, always beside the same encoder untrained."""
