//! What the command line's demo and the tests share: an S3 server in the process.

pub mod s3_server;
