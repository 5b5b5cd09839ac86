"""Files of `torch.save`, read by a process of their own, which runs no code of them."""
