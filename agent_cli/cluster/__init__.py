"""A cluster as this command sees it: everything goes through the user's own kubectl."""
