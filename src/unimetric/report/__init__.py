"""Tables and figures of measured numbers."""
