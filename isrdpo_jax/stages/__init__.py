"""Host loops over the device programs: supervised start, collect, pairs, reference, optimize."""
