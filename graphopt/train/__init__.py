"""Training on the graph itself: a torch.fx module made of it, distillation from the original, and the way back."""
