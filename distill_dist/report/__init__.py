"""One page from the files of many runs, and the list of them; no torch, so that it answers soon."""
