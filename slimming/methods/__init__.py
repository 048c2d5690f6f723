"""One small file per way of training towards, and scoring, channels."""
