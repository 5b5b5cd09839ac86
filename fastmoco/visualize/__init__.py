"""Pictures of views, training curves, feature maps and nearest neighbors."""
