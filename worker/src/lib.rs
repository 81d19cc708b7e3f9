//! Executes attempts.
