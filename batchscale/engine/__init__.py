"""Packs of trials on devices: started, advanced, measured. Knows no file and no stop rule."""
