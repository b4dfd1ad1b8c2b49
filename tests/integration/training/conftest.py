from support.shapes import _one_thread, edit_annotations, shapes, trained

__all__ = ["_one_thread", "edit_annotations", "shapes", "trained"]
