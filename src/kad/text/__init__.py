"""A composed model at work on text: prompts, answers, streams, scores, batches, conversations."""
