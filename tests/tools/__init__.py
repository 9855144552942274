"""Outside programs that tests use as judges: found on the machine, or fetched as Debian packages."""
