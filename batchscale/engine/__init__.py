"""Packs of trials on devices: started, advanced, measured. It knows nothing of files or of goals' ends."""
