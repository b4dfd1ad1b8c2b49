"""The seven stages of Faster R-CNN, a file each, in the order of the data."""
