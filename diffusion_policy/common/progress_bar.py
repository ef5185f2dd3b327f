"""The progress bars of this project."""

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm's bar, but for one that Ctrl-C has interrupted while it was made: there is nothing to
    close, and trying would print a traceback.
    """

    def __del__(self):
        if hasattr(self, "start_t"):  # the last thing that is set
            super().__del__()
