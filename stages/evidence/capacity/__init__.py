"""C6: how many associations the memory mechanism alone can hold, by the keys it is given."""
