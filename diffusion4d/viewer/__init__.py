"""Looking at hypotheses in a browser: one page, written as a file or served from this machine."""
