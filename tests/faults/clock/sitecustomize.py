"""On the path of a server under test: its wall clock stands as many seconds off as the file FAULTS_CLOCK says."""

import os
import time
from pathlib import Path

if named := os.environ.get("FAULTS_CLOCK"):
    real, ahead = time.time, Path(named)
    time.time = lambda: real() + float(ahead.read_text())
