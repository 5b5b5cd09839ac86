"""Detection transfer: fine-tune Faster R-CNN and related models on a pretrained backbone."""
