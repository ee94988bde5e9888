"""Real programs at work in a directory: what users will do on day one."""
