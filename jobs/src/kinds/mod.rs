//! The kinds of work, as far as they run inside the worker or shape a plan.
