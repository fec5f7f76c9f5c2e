"""Where images come from: datasheets, fetching, generated slices, the index and its splits."""
