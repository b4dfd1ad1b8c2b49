"""The seven stages of Faster R-CNN, and where its weights come from.

`stages` has one file for each stage, in the order of the data:

    input        pictures -> RGB tensors on the device
    preprocess   RGB tensors -> one normalised batch
    features     batch -> feature maps of several strides (backbone and FPN)
    proposals    feature maps -> boxes that may hold an object (RPN)
    roi_pool     feature maps, boxes -> a small feature map for each box
    classify     small feature maps -> a score for each class, and a better box
    postprocess  scores, boxes -> detections in pixels of the frame

`pipeline` composes them. `weights` has the architectures and loads their parameters, `engines` and `graph` run them.
`trial` measures the engines of this machine, `choice` chooses the engine, batch size and workers, and `load` makes the
detectors of the daemon, which `pool` holds.
Importing this package does not import torch; importing its modules does.
"""
