"""Files in object storage and on this machine behind one interface: `objects` reads and writes, `access` explains."""
