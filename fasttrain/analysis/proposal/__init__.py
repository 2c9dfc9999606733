"""`fasttrain new`: from a look at images to two recipes that fit them and this machine."""
