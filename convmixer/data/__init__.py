"""Images: their sources and splits, image files, augmentation."""
