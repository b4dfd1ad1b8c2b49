"""Detects objects with torchvision's Faster R-CNN, and finds out which engine does so the fastest on this machine.

Its seven stages, in the order of the data, each a file in `stages`:

    input        pictures -> RGB tensors on the device
    preprocess   RGB tensors -> one normalised batch
    features     batch -> feature maps of several strides (backbone and FPN)
    proposals    feature maps -> boxes that may hold an object (RPN)
    roi_pool     feature maps, boxes -> a small feature map for each box
    classify     small feature maps -> a score for each class, and a better box
    postprocess  scores, boxes -> detections in pixels of the frame

`pipeline` composes them, and `pool` holds a detector for each inference worker. `engines` runs the convolutions and
matrix products of features, proposals and classify in torch or OpenVINO; `graph` is a second path, for CUDA devices.
`weights` finds the parameters. `load` makes what the daemon runs; `trial` finds out which engine that is, with
`choice`, `tester`, `agreement` and `state`. Importing this package does not import torch.
"""
