"""What methods train with: batches, the training loop, and the base of methods that train one part of CLIP."""
