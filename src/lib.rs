//! What the command line, its demo and the tests share.
