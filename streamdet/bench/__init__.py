"""Measures the detector, the daemon and this machine, and reports how many streams the machine can process.

    frames            real frames to measure with, and a clip of them
    cases             what is compared: models, engines, precisions, batch sizes
    contenders        the detectors that are measured
    compare           alternating rounds, and the statistics of their times
    floor             arithmetic of the model over the measured peak of the machine
    plain_loop        a plain loop of OpenCV and torchvision
    daemon, stand_in  the real daemon in a separate process; the same without a detector
    end_to_end        one model from file to event, and how many streams fit
    run               runs all of these in order, within the given time
    report            the results: JSON, tables, a chart
    machine           facts about the machine, and the load of other processes during a measurement

Importing this package does not import torch; importing its modules does.
"""
