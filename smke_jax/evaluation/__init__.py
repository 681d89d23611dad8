"""One evaluator per file: retrieval (with ranking and median_rank), zero-shot, classification, GLUE."""
