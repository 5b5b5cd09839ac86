"""Detection transfer: what a pretrained backbone is worth to Faster R-CNN and its kin."""
